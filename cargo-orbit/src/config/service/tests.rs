use super::*;
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
        ReadyWhen::Log("ready".to_owned()),
        ReadyWhen::Http {
            path: "/up".to_owned(),
            port: Some(80),
        },
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
