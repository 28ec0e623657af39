//! Ports and networks, end to end: what sandboxes serve is reached where it was asked for, and nowhere else.
//!
//! The services are this very binary, run in the sandbox over the host's files: see `service`.

mod bridge;
mod egress;
mod internet;
mod named;
mod publish;
mod scale;
mod sealed;
mod service;
mod shared;
mod support;
mod wire;

use std::process::ExitCode;

use orbit_tests::main_loop;

fn main() -> ExitCode {
    if let Some(done) = service::run() {
        return done;
    }
    main_loop::run(
        [
            publish::cases(),
            named::cases(),
            bridge::cases(),
            scale::cases(),
            wire::cases(),
            shared::cases(),
            egress::cases(),
            sealed::cases(),
        ]
        .concat(),
    )
}
