// What only the compiler can tell. With arguments, they are for a framework that gives them: no `#[test]` is added.

fn answer() -> u32 {
    42
}

#[orbit::sandboxed(hostname = answer())]
fn no_text(_of_a_framework: ()) {}

#[orbit::sandboxed(timeout = answer())]
fn no_time(_of_a_framework: ()) {}

#[orbit::sandboxed(nested = answer())]
fn no_switch(_of_a_framework: ()) {}

#[orbit::sandboxed]
fn returns_a_number(_of_a_framework: ()) -> u32 {
    answer()
}

fn main() {}
