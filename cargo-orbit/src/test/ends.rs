//! Output of which the beginning and the end are kept, however much comes: a test that prints without end must not take
//! the memory of who listens.
//!
//! Pure.

/// Bytes, or where more came than may be kept, their beginning and their end.
#[derive(Clone, Debug)]
pub(crate) struct Ends {
    head: Vec<u8>,
    /// Up to twice as much as is kept, so that it is not moved for each byte.
    tail: Vec<u8>,
    head_most_bytes: usize,
    tail_most_bytes: usize,
    omitted_bytes: u64,
}

impl Ends {
    /// Keeps `most_bytes`; more of the end, which is where a test says why it fails.
    pub(crate) const fn new(most_bytes: usize) -> Self {
        let head_most_bytes = most_bytes / 4;
        Self {
            head: Vec::new(),
            tail: Vec::new(),
            head_most_bytes,
            tail_most_bytes: most_bytes - head_most_bytes,
            omitted_bytes: 0,
        }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let room = self.head_most_bytes - self.head.len();
        let (head, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(head);
        // What is longer than all that is kept need not be copied first.
        let skipped = rest.len().saturating_sub(self.tail_most_bytes);
        if skipped > 0 {
            self.omit(self.tail.len());
            self.omitted_bytes += skipped as u64;
        }
        self.tail.extend_from_slice(&rest[skipped..]);
        if self.tail.len() > 2 * self.tail_most_bytes {
            self.omit(self.tail.len() - self.tail_most_bytes);
        }
    }

    fn omit(&mut self, length: usize) {
        self.tail.drain(..length);
        self.omitted_bytes += length as u64;
    }

    /// How many bytes are held.
    pub(crate) const fn held(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// What was kept, with a note where something is missing.
    pub(crate) fn into_bytes(mut self) -> Vec<u8> {
        if self.tail.len() > self.tail_most_bytes {
            self.omit(self.tail.len() - self.tail_most_bytes);
        }
        if self.omitted_bytes > 0 {
            let note = format!(
                "\n[orbit: {} bytes are left out here]\n",
                self.omitted_bytes
            );
            self.head.extend_from_slice(note.as_bytes());
        }
        self.head.append(&mut self.tail);
        self.head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_kept_whole_and_much_at_its_ends() {
        let mut ends = Ends::new(16);
        ends.push(b"0123456789");
        assert_eq!(ends.clone().into_bytes(), b"0123456789");
        ends.push(b"abcdefghij");
        assert_eq!(
            String::from_utf8(ends.into_bytes()).unwrap(),
            "0123\n[orbit: 4 bytes are left out here]\n89abcdefghij"
        );
    }

    proptest::proptest! {
        #[test]
        fn it_is_bounded_and_counts_what_is_missing(parts: Vec<Vec<u8>>, most in 4usize..64) {
            let mut ends = Ends::new(most);
            for part in &parts {
                ends.push(part);
                proptest::prop_assert!(ends.held() <= 2 * most);
            }
            let all = parts.concat();
            let kept = ends.into_bytes();
            if all.len() <= most {
                proptest::prop_assert_eq!(kept, all);
            } else {
                let (head, tail) = (most / 4, most - most / 4);
                let note = format!("\n[orbit: {} bytes are left out here]\n", all.len() - most);
                let wanted = [&all[..head], note.as_bytes(), &all[all.len() - tail..]].concat();
                proptest::prop_assert_eq!(kept, wanted);
            }
        }
    }
}
