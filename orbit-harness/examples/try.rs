//! scratch
use orbit::*;
fn main() {
    let mut args = std::env::args().skip(1);
    let image = args.next().unwrap();
    let b = Sandbox::builder().image(&image).cmd(args);
    match b.run() { Ok(o) => { print!("{}", o.stdout_text()); eprint!("{}", o.stderr_text()); eprintln!("=> {} wall={:?} {:?} leaked {:?}", o.status, o.wall_time, o.usage, o.leaked) } Err(e) => eprintln!("ERR {e}") }
}
