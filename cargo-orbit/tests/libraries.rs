//! Which libraries the program loads at each start: each is a file to be found, mapped, relocated and given back, a
//! twentieth of the time of a command that prints its help.

#![cfg(target_env = "gnu")]

use std::fs;

#[test]
fn the_program_loads_no_library_that_it_does_without() {
    let needed = needed(&fs::read(env!("CARGO_BIN_EXE_cargo-orbit")).unwrap());
    assert!(
        needed.iter().any(|name| name == "libc.so.6") || cfg!(target_feature = "crt-static"),
        "its file is not read as the loader reads it: {needed:?}"
    );
    assert!(
        !needed.iter().any(|name| name == "libm.so.6"),
        "some crate calls a function such as pow or exp. `nm -D` of the program says which: {needed:?}"
    );
    // Where build.rs found none to link, it is loaded.
    if cfg!(unwinder_is_linked) {
        assert!(
            !needed.iter().any(|name| name == "libgcc_s.so.1"),
            "the linker took only a part of the unwinder from where build.rs said: {needed:?}"
        );
    }
}

/// The names of `DT_NEEDED` of a 64-bit little-endian program, as `readelf -d` shows them.
///
/// Source: elf(5), "Section header (Shdr)" and "Dynamic tags (Dyn)".
fn needed(file: &[u8]) -> Vec<String> {
    const DYNAMIC: u64 = 6;
    const NEEDED: u64 = 1;

    assert!(file.starts_with(b"\x7fELF\x02\x01"), "another kind of file");
    let number = |at: usize, bytes: usize| {
        let mut number = [0; 8];
        number[..bytes].copy_from_slice(&file[at..at + bytes]);
        u64::from_le_bytes(number)
    };
    let place = |at| usize::try_from(number(at, 8)).expect("it is in memory");
    // e_shoff, e_shentsize and e_shnum.
    let (sections, bytes, count) = (place(40), number(58, 2), number(60, 2));
    let section = |index: u64| sections + usize::try_from(index * bytes).expect("it is in memory");
    // sh_offset and sh_size.
    let content = |header: usize| (place(header + 24), place(header + 32));

    let mut dynamic = (0..count).map(section);
    let Some(dynamic) = dynamic.find(|header| number(header + 4, 4) == DYNAMIC) else {
        return Vec::new();
    };
    // sh_link: where the names are.
    let (names, _) = content(section(number(dynamic + 40, 4)));
    let (start, bytes) = content(dynamic);
    let entries = (start..start + bytes).step_by(16);
    entries
        .filter(|&entry| number(entry, 8) == NEEDED)
        .map(|entry| {
            let name = &file[names + place(entry + 8)..];
            let end = name
                .iter()
                .position(|&byte| byte == 0)
                .expect("a name ends");
            String::from_utf8_lossy(&name[..end]).into_owned()
        })
        .collect()
}
