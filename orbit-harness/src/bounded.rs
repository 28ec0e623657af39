//! What is kept of a stream that may have no end: its beginning and its end.

use std::collections::VecDeque;

use crate::units::Bytes;

/// How much of each stream is kept where nothing else was asked for.
pub(crate) const DEFAULT_LIMIT: Bytes = Bytes::mib(16);

/// The beginning and the end of what a program wrote: a program that prints without end must not take the test's
/// memory, and what matters is what came first and what came last.
#[derive(Debug)]
pub(crate) struct Kept {
    head: Vec<u8>,
    head_max: usize,
    tail: VecDeque<u8>,
    tail_max: usize,
    left_out: u64,
}

impl Kept {
    pub(crate) fn new(limit: Bytes) -> Self {
        let limit = usize::try_from(limit.as_u64()).unwrap_or(usize::MAX);
        Self {
            head: Vec::new(),
            head_max: limit / 2,
            tail: VecDeque::new(),
            tail_max: limit - limit / 2,
            left_out: 0,
        }
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let room = self.head_max - self.head.len();
        let (first, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(first);
        let (skipped, rest) = rest.split_at(rest.len().saturating_sub(self.tail_max));
        let excess = (self.tail.len() + rest.len()).saturating_sub(self.tail_max);
        self.tail.drain(..excess);
        self.tail.extend(rest);
        self.left_out += (skipped.len() + excess) as u64;
    }

    /// How much was written.
    pub(crate) fn written(&self) -> u64 {
        self.tail_start() + self.tail.len() as u64
    }

    /// Where the kept end begins, in all that was written.
    fn tail_start(&self) -> u64 {
        self.head.len() as u64 + self.left_out
    }

    /// The bytes from `from` to `to`, counted in all that was written; `None` where none of them is kept. Of what
    /// reaches from the kept beginning or the gap into the kept end, the end.
    pub(crate) fn get(&self, from: u64, to: u64) -> Option<Vec<u8>> {
        let index = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        if let Some(bytes) = self.head.get(index(from)..index(to)) {
            return Some(bytes.to_vec());
        }
        let start = self.tail_start();
        let is_cut = self.left_out > 0;
        if is_cut && (to < start || (to == start && from < to)) {
            return None;
        }
        let head = if is_cut {
            &[]
        } else {
            self.head.get(index(from)..).unwrap_or_default()
        };
        let first = index(from.saturating_sub(start)).min(self.tail.len());
        let last = index(to.saturating_sub(start)).min(self.tail.len());
        Some(
            [
                head,
                &self.tail.range(first..last).copied().collect::<Vec<_>>(),
            ]
            .concat(),
        )
    }

    /// Of these, what fits into `limit`, as if it had been kept with that.
    pub(crate) fn within(&self, limit: Bytes) -> Self {
        let mut kept = Self::new(limit);
        kept.add(&self.head);
        let (first, second) = self.tail.as_slices();
        kept.add(first);
        kept.add(second);
        kept.left_out += self.left_out;
        kept
    }

    /// The bytes, with a line in place of those that are missing.
    pub(crate) fn into_parts(self) -> (Vec<u8>, Option<Bytes>) {
        let Self {
            mut head,
            tail,
            left_out,
            ..
        } = self;
        let left_out = (left_out > 0).then(|| Bytes::new(left_out));
        if let Some(count) = left_out {
            let bytes = count.as_u64();
            let line = format!("\n[orbit: {bytes} bytes left out; `capture_limit` keeps more]\n");
            head.extend_from_slice(line.as_bytes());
        }
        head.extend(tail);
        (head, left_out)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kept(limit: u64, parts: &[&[u8]]) -> (String, Option<u64>) {
        let mut kept = Kept::new(Bytes::new(limit));
        for part in parts {
            kept.add(part);
        }
        let (bytes, left_out) = kept.into_parts();
        (
            String::from_utf8(bytes).unwrap(),
            left_out.map(Bytes::as_u64),
        )
    }

    #[test]
    fn what_fits_is_kept_as_it_came() {
        assert_eq!(kept(7, &[b"ab", b"", b"cdefg"]), ("abcdefg".into(), None));
        assert_eq!(kept(0, &[]), (String::new(), None));
    }

    #[test]
    fn of_what_does_not_fit_the_middle_is_left_out_and_said() {
        let line =
            |count| format!("\n[orbit: {count} bytes left out; `capture_limit` keeps more]\n");
        assert_eq!(
            kept(4, &[b"abcdefgh", b"ij"]),
            (format!("ab{}ij", line(6)), Some(6))
        );
        assert_eq!(kept(0, &[b"abc"]), (line(3), Some(3)));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_but_what_is_said(limit in 0u32..40, parts: Vec<Vec<u8>>) {
            let limit = u64::from(limit);
            let mut kept = Kept::new(Bytes::new(limit));
            for part in &parts {
                kept.add(part);
            }
            let all = parts.concat();
            let (head, tail) = (kept.head.clone(), Vec::from(kept.tail.clone()));
            let count = (head.len() + tail.len()) as u64;
            prop_assert!(count <= limit);
            prop_assert_eq!(count + kept.left_out, all.len() as u64);
            prop_assert!(all.starts_with(&head) && all.ends_with(&tail));
            prop_assert!(kept.left_out == 0 || count == limit);
            prop_assert_eq!(kept.written(), all.len() as u64);
            for from in 0..=all.len() {
                for to in from..=all.len() {
                    if let Some(bytes) = kept.get(from as u64, to as u64) {
                        prop_assert!(all[from..to].ends_with(&bytes));
                        prop_assert!(bytes.len() == to - from || kept.left_out > 0);
                    } else {
                        prop_assert!(kept.left_out > 0);
                    }
                }
            }
        }

        #[test]
        fn a_part_of_what_is_kept_is_as_if_kept_so(few in 0u32..40, more in 0u32..40, parts: Vec<Vec<u8>>) {
            let few = Bytes::new(u64::from(few));
            let mut kept = Kept::new(Bytes::new(few.as_u64() + u64::from(more)));
            let mut wanted = Kept::new(few);
            for part in &parts {
                kept.add(part);
                wanted.add(part);
            }
            prop_assert_eq!(kept.within(few).into_parts(), wanted.into_parts());
        }
    }
}
