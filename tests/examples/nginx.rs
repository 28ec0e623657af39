//! nginx in a test: files of its own before it starts, ready when it answers, fetched from by a client.
//!
//! ```sh
//! images/build.sh nginx
//! cargo run -p orbit-tests --example nginx
//! ```

use std::time::Duration;

use orbit::{Sandbox, Wait};

const SITE: &str = r#"
server {
    listen 8080;
    location /health { return 200 "up"; }
    location /       { root /srv/site; }
}
"#;

pub(crate) fn main() -> anyhow::Result<()> {
    let mut server = Sandbox::builder()
        .image("oci:target/images/nginx")
        .file("/etc/nginx/conf.d/site.conf", SITE)
        .file("/srv/site/index.html", "<h1>hello</h1>")
        .expose(8080)
        .wait_for(Wait::http("/health").on_port(8080).status(200).body("up"))
        .start()?;
    let url = format!("http://{}/", server.addr(8080));

    let page = ureq::get(&url).call()?.body_mut().read_to_string()?;
    assert_eq!(page, "<h1>hello</h1>");
    println!("{url} is {page}");

    // What it says of it is in the log. Its workers run as a user of their own.
    let seen = |line: &orbit::LogLine| line.text.contains("GET / HTTP/1.1");
    let mut logs = server.logs().follow_for(Duration::from_secs(5));
    let line = logs.find(seen).expect("each request is logged");
    println!("{}: {}", line.stream, line.text);
    let processes = server.exec(["busybox", "ps", "-o", "user,comm"]).run()?;
    assert!(processes.stdout_text().contains("www-data nginx"));
    print!("{}", processes.stdout_text());

    // Its image asks to be stopped by SIGQUIT, which nginx answers by finishing what it is doing.
    let outcome = server.stop(Duration::from_secs(5))?;
    assert!(outcome.success());
    println!("nginx {}", outcome.status);
    Ok(())
}
