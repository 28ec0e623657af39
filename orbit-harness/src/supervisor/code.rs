//! The code of this process, as its forks find it.

use std::{fs::File, io, os::unix::fs::FileExt as _};

/// Has forks find mapped what this process has mapped of its own code and of the C library's.
///
/// To a fork the kernel copies where memory is, but not of a file's mapping that nobody has written to: the fork finds that out
/// by a fault for each sixteen pages. An init took 49 such faults of the 69 that it took until its program was executed.
/// A mapping with one page of its own is copied whole; so a byte of each is written, which was there.
///
/// Where that is refused, forks take a little longer, and nothing else is lost. To be called before this process is
/// undumpable: then its own files in `/proc` are not its own.
///
/// Source: Linux, mm/memory.c, `vma_needs_copy`; proc_pid_mem(5).
pub(super) fn keep_for_forks() {
    let of_c: unsafe extern "C" fn() -> libc::pid_t = libc::getpid;
    let _ = write_what_is_there(&[keep_for_forks as fn() as usize, of_c as usize]);
}

fn write_what_is_there(addresses: &[usize]) -> io::Result<()> {
    let memory = File::options()
        .read(true)
        .write(true)
        .open("/proc/self/mem")?;
    for address in addresses {
        let (mut byte, address) = ([0], *address as u64);
        memory.read_exact_at(&mut byte, address)?;
        memory.write_all_at(&byte, address)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many pages of its own the mapping has that this code is in. Source: proc_pid_smaps(5).
    fn private_kib() -> u64 {
        let here = keep_for_forks as fn() as usize as u64;
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_here = false;
        for line in smaps.lines() {
            let range = line.split(' ').next().and_then(|it| it.split_once('-'));
            let number = |text| u64::from_str_radix(text, 16);
            if let Some((Ok(from), Ok(to))) = range.map(|(from, to)| (number(from), number(to))) {
                is_here = (from..to).contains(&here);
            } else if let Some(kib) = line.strip_prefix("Anonymous:").filter(|_| is_here) {
                return kib.trim().trim_end_matches(" kB").parse().unwrap();
            }
        }
        panic!("this code is nowhere");
    }

    #[test]
    fn the_mapping_of_the_code_has_a_page_of_its_own() {
        assert_eq!(private_kib(), 0);
        keep_for_forks();
        assert!(private_kib() > 0);
    }
}
