use super::{ready::HttpWhen, *};
use crate::config::file::File;

fn file(text: &str) -> File {
    let text = Text::new(Path::new("/w/orbit.toml"), Path::new("/w"), text);
    File::read(text, &[], Path::new("/w"))
}

fn told(text: &str) -> String {
    let file = file(text);
    let mut faults = file.faults;
    if faults.is_empty() {
        faults = super::faults(file.services.iter().map(|read| (&file.text, read)));
    }
    let texts: Vec<String> = faults.iter().map(Fault::to_string).collect();
    texts.join("\n")
}

#[test]
fn a_service_is_read_as_it_stands() {
    let file = file(
        "memory = '1G'\n[[service]]\nname = 'db'\nfilter = 'all()'\nimage = 'oci:images/db'\nports = [5432]\n\
         cmd = ['serve']\nmemory = '64M'\nenv = { A = 'b' }\nstartup_timeout = '5s'\n\
         wait = [{ log = 'ready' }, { http = '/up', port = 80 }, { healthcheck = true }]\n\
         [[service]]\nname = 'app'\nafter = ['db']\n",
    );
    assert_eq!(file.faults, []);
    let [db, app] = &file.services[..] else {
        panic!("{file:?}");
    };
    assert_eq!(app.service.after, ["db"]);
    let db = &db.service;
    assert_eq!(
        (db.variable(), &db.ports[..]),
        ("ORBIT_SERVICE_DB".to_owned(), &[5432][..])
    );
    assert_eq!(db.settings.image(), Some("oci:/w/images/db"));
    assert_eq!(db.settings.memory_bytes(), Some(64 << 20));
    assert_eq!(db.startup_timeout, Some(Duration::from_secs(5)));
    let waits = [
        ReadyWhen::Log {
            pattern: "ready".to_owned(),
            on: None,
            times: None,
        },
        ReadyWhen::Http(Box::new(HttpWhen {
            path: "/up".to_owned(),
            port: Some(80),
            ..HttpWhen::default()
        })),
        ReadyWhen::Healthcheck,
    ];
    assert_eq!(db.waits.as_deref(), Some(&waits[..]));
}

#[test]
fn everything_that_is_wrong_with_a_service_is_told_at_its_place() {
    insta::assert_snapshot!(told(
        "[[service]]\nname = 'my db'\nport = 1\nports = [0]\nmemory = 64\ncmd = 'serve'\nisolate = 'test'\n\
         wait = [{ lgo = 'x' }]\n[[service]]\nimage = 'x'\n[[service]]\nname = 'a'\n\
         wait = [{ log = '(' }]\n[[service]]\nname = 'b'\nwait = [{ log = 'x', file = '/y' }]\n\
         [profile.ci]\nservice = 1\n"
    ));
    insta::assert_snapshot!(told("service = 1"));
}

#[test]
fn what_services_need_is_looked_at_in_all() {
    insta::assert_snapshot!(told(
        "[[service]]\nname = 'db'\n[[service]]\nname = 'app'\nafter = ['dbb']\n[[service]]\nname = 'db'\n"
    ));
    insta::assert_snapshot!(told(
        "[[service]]\nname = 'db'\nafter = ['app']\n[[service]]\nname = 'app'\nafter = ['db']\n"
    ));
}

#[test]
fn waits_have_the_keys_that_the_library_has() {
    let file = file(
        "[[service]]\nname = 'a'\nwait = [\
         { log = 'x', on = 'stderr', times = 2 },\
         { exec = ['a'], code = 3 },\
         { any = [{ exit = 0 }, { all = [{ port = 1 }, { file = '/a' }] }] },\
         { http = '/q', method = 'POST', send_header = { X-A = 'b' }, basic_auth = ['u', 'p'], send_body = 'c', \
         status = 201, header = { X-D = 'e' }, body = 'f', body_matches = 'g+' }]\n\
         [[service]]\nname = 'b'\nwait = [{ http = '/', bearer_auth = 't' }]\n",
    );
    assert_eq!(file.faults, []);
    let service = &file.services[0].service;
    assert!(service.may_end() && !file.services[1].service.may_end());
    let waits: Vec<String> = service
        .waits
        .iter()
        .flatten()
        .map(|wait| wait.wait(&[80]).to_string())
        .collect();
    assert_eq!(
        waits,
        [
            "log /x/ on stderr 2 times",
            "exec `a` with code 3",
            "any [exit with code 0, all [port 1, file /a]]",
            "http POST /q on port 80 with 201",
        ]
    );
    let Some([.., ReadyWhen::Http(http)]) = service.waits.as_deref() else {
        panic!("{service:?}");
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let said = HttpWhen {
        path: "/q".to_owned(),
        method: Some("POST".to_owned()),
        headers: vec![pair("X-A", "b")],
        basic_auth: Some(pair("u", "p")),
        send_body: Some("c".to_owned()),
        status: Some(201),
        expected_headers: vec![pair("X-D", "e")],
        body: Some("f".to_owned()),
        body_matches: Some("g+".to_owned()),
        ..HttpWhen::default()
    };
    assert_eq!(**http, said);
}

#[test]
fn what_is_wrong_with_a_wait_is_told_at_its_place() {
    let of = |wait: &str| told(&format!("[[service]]\nname = 'a'\nwait = [{wait}]\n"));
    let all = [
        "{ port = 1, times = 2 }",
        "{ log = 'x', status = 200 }",
        "{ log = 'x', on = 'both' }",
        "{ exec = ['a'], code = 'b' }",
        "{ http = '/', method = 'GET /' }",
        "{ http = '/', header = ['a'] }",
        "{ http = '/', send_header = { a = \"b\\nc\" } }",
        "{ http = '/', basic_auth = ['u'] }",
        "{ http = '/', status = 70000 }",
        "{ http = '/', body_matches = '(' }",
        "{ file = 'relative' }",
        "{ any = [] }",
        "{ all = [{ port = 0 }] }",
    ];
    insta::assert_snapshot!(all.map(of).join("\n"));
}
