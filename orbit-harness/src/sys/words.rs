//! The words that this process was started with: its arguments and its environment, which `/proc/PID/cmdline` and
//! `/proc/PID/environ` show as they lie in memory.

use std::{ffi::CStr, fs, io, ops::Range, ptr};

use super::SingleThreaded;

/// Where they lie: first the arguments, then the environment, one string after the other without a gap.
///
/// Source: proc_pid_stat(5), `arg_start` to `env_end`; Linux, fs/exec.c, `copy_strings`.
pub(crate) struct Words(Range<usize>);

impl Words {
    /// Of this process.
    ///
    /// # Errors
    /// Where `/proc` is not there, or says nothing of it.
    pub(crate) fn find() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/self/stat")?;
        range(&text).map(Self).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "/proc/self/stat does not say where the arguments are",
            )
        })
    }

    /// Whether `name` has room where the first argument is.
    pub(crate) fn fits(&self, name: &CStr) -> bool {
        self.0.len() >= name.to_bytes_with_nul().len()
    }

    /// Overwrites all of them with zeros, but for `name` as the first argument, which must fit, and empties the environment:
    /// as an execution with that name and nothing else would have it.
    ///
    /// # Safety
    /// This process is a copy, by fork, of the one that found them, and nothing in it reads what it has borrowed of them
    /// before.
    pub(super) unsafe fn forget(self, _: SingleThreaded, name: &CStr) {
        let Range { start, end } = self.0;
        let first: *mut u8 = ptr::with_exposed_provenance_mut(start);
        // SAFETY: the kernel has put the strings between these addresses, into the stack of the first thread, which is
        // this one's memory, can be written to, and stays as long as the process; by contract nobody reads them.
        unsafe { ptr::write_bytes(first, 0, end - start) };
        // SAFETY: this is the only thread, so nobody reads or changes the environment meanwhile.
        unsafe { libc::clearenv() };
        let name = name.to_bytes_with_nul();
        assert!(name.len() <= end - start, "a name that fits");
        // SAFETY: as above, for the first of those bytes; `name` is none of them.
        unsafe { ptr::copy_nonoverlapping(name.as_ptr(), first, name.len()) };
    }
}

/// `arg_start` and `env_end`, fields 48 and 51, in the text of a stat file. The second, a process's name in parentheses, may hold
/// anything.
fn range(stat: &str) -> Option<Range<usize>> {
    let (_, after_name) = stat.rsplit_once(')')?;
    // The first of these is field 3.
    let mut fields = after_name.split_ascii_whitespace().skip(48 - 3);
    let mut next = || fields.next()?.parse::<usize>().ok();
    let (arguments, _, _, end) = (next()?, next()?, next()?, next()?);
    (arguments != 0 && arguments < end).then_some(arguments..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_where_the_kernel_says() {
        let words = Words::find().unwrap();
        assert!(words.fits(c"x"));
        let long = std::ffi::CString::new(vec![b'x'; words.0.len()]).unwrap();
        assert!(!words.fits(&long));
        let shown = fs::read("/proc/self/cmdline").unwrap().len()
            + fs::read("/proc/self/environ").unwrap().len();
        assert_eq!(words.0.len(), shown);
    }

    #[test]
    fn a_name_may_look_like_fields() {
        let rest: Vec<String> = (3..=52).map(|field| (field * 100).to_string()).collect();
        let stat = format!("7 (a) S 1 (b) {}\n", rest.join(" "));
        assert_eq!(range(&stat), Some(4800..5100));
        assert_eq!(range("7 (a) S 1 2 3\n"), None);
        assert_eq!(range(""), None);
        // What the kernel says to who may not know.
        let hidden: Vec<&str> = (3..=52).map(|_| "0").collect();
        assert_eq!(range(&format!("7 (a) {}", hidden.join(" "))), None);
    }
}
