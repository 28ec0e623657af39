#[orbit::sandboxed(memory = "64Q")]
fn unit() {}

#[orbit::sandboxed(memory = 64)]
fn number() {}

#[orbit::sandboxed(timeout = "10")]
fn no_unit() {}

#[orbit::sandboxed(timeout = 10)]
fn no_time() {}

#[orbit::sandboxed(timeout = "0s")]
fn no_time_at_all() {}

#[orbit::sandboxed(cpu = -1)]
fn negative() {}

#[orbit::sandboxed(cpu = 0)]
fn nothing() {}

#[orbit::sandboxed(cap_drop("NET_RAWW", "CHOWN", "FLY"))]
fn capabilities() {}

#[orbit::sandboxed(network = "hosts")]
fn network() {}

#[orbit::sandboxed(mount("/a"), working_dir = "here", hostname = "a b", image = "dir:")]
fn many() {}

#[orbit::sandboxed(env("A=B" = "1", C = 2, D = "1", D = "2"))]
fn variables() {}

#[orbit::sandboxed(read_only = "yes")]
fn no_switch() {}

#[orbit::sandboxed(user = 1000)]
fn no_name() {}

#[orbit::sandboxed(egress = "192.0.2.1:70000")]
fn no_port() {}

fn main() {}
