#[orbit::sandboxed]
async fn without_a_runtime() {}

#[orbit::sandboxed]
struct NotAFunction;

#[orbit::sandboxed]
#[orbit::sandboxed]
fn twice() {}

#[orbit::sandboxed]
const fn constant() {}

struct Type;

impl Type {
    #[orbit::sandboxed]
    fn method(&self) {}
}

fn main() {}
