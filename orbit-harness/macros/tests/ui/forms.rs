#[orbit::sandboxed(timeout("10s"))]
fn not_a_list() {}

#[orbit::sandboxed(env = "A=1")]
fn not_a_text() {}

#[orbit::sandboxed(memory)]
fn without_a_value() {}

#[orbit::sandboxed(read_only(true))]
fn a_switch_is_no_list() {}

#[orbit::sandboxed(mount())]
fn of_nothing() {}

#[orbit::sandboxed(memory = "64M" timeout = "1s")]
fn without_a_comma() {}

#[orbit::sandboxed("64M")]
fn without_a_key() {}

fn main() {}
