//! What a test does with a service that runs: further programs, logs, readiness, files, pauses, restarts, async,
//! and with several of them, or one for many tests.

mod asynchronous;
mod disk;
mod examples;
mod exec;
mod files;
mod guide;
mod handle;
mod logs;
mod ready;
mod redis;
mod scenario;
mod shared;
mod support;
mod web;

use std::process::ExitCode;

use orbit_tests::main_loop;

fn main() -> ExitCode {
    if let Some(role) = std::env::var_os(support::ROLE) {
        return support::play(&role.to_string_lossy());
    }
    main_loop::run(
        [
            exec::cases(),
            logs::cases(),
            ready::cases(),
            files::cases(),
            handle::cases(),
            disk::cases(),
            redis::cases(),
            web::cases(),
            examples::cases(),
            guide::cases(),
            asynchronous::cases(),
            scenario::cases(),
            shared::cases(),
        ]
        .concat(),
    )
}
