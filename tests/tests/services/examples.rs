//! The examples for people to read, run as they are.

use std::env;

use anyhow::Result;
use orbit_tests::{Case, Who};

#[path = "../../examples/nginx.rs"]
mod nginx;
#[path = "../../examples/postgres.rs"]
mod postgres;
#[path = "../../examples/redis.rs"]
mod redis;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        example("nginx", nginx::main),
        example("postgres", postgres::main),
        example("redis", redis::main),
    ]
}

fn example(name: &str, main: fn() -> Result<()>) -> Case {
    Case::new(format!("examples::{name}"), move |_| {
        // Where their images are found.
        env::set_current_dir(orbit_tests::workspace())?;
        main()
    })
    .who(Who::RANGED)
}
