#[orbit::sandboxed(memry = "64M")]
fn misspelt() {}

#[orbit::sandboxed(colour = "red", imaeg = "host")]
fn two_at_once() {}

#[orbit::sandboxed(timeout = "1s", timeout = "2s")]
fn twice() {}

#[orbit::sandboxed(cap_drop("NET_RAW"), cap_drop("CHOWN"))]
fn a_list_twice() {}

#[orbit::sandboxed(cmd("sh"), volume = "/a:/b", publish = "80:80")]
fn of_the_builder_alone() {}

fn main() {}
