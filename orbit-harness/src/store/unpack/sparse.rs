//! Where the pieces of a sparse file lie.

use super::error::Reason;

/// Pieces of content in rising order, and the size of the whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SparseMap {
    /// Offset and length.
    pub(super) pieces: Vec<(u64, u64)>,
    pub(super) real_size: u64,
}

impl SparseMap {
    /// Half a million pieces: more than any file system makes of a file that is worth a place in an image.
    pub(super) const MAX_NUMBERS: usize = 1 << 20;

    /// Offset, length, offset, length …
    pub(super) fn new(numbers: &[u64], real_size: u64) -> Result<Self, Reason> {
        if !numbers.len().is_multiple_of(2) || numbers.len() > Self::MAX_NUMBERS {
            return Err(Reason::BadSparseMap);
        }
        let mut end = 0;
        let mut pieces = Vec::with_capacity(numbers.len() / 2);
        for pair in numbers.chunks_exact(2) {
            let (offset, length) = (pair[0], pair[1]);
            if offset < end {
                return Err(Reason::BadSparseMap);
            }
            end = offset.checked_add(length).ok_or(Reason::BadSparseMap)?;
            if length > 0 {
                pieces.push((offset, length));
            }
        }
        // The kernel counts a file's size in 63 bits.
        if end > real_size || i64::try_from(real_size).is_err() {
            return Err(Reason::BadSparseMap);
        }
        Ok(Self { pieces, real_size })
    }

    /// How much of the file is in the archive. Cannot overflow: the pieces do not overlap.
    pub(super) fn data_bytes(&self) -> u64 {
        self.pieces.iter().map(|(_, length)| length).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_rise_and_stay_inside() {
        let map = SparseMap::new(&[0, 10, 100, 5, 200, 0], 200).unwrap();
        assert_eq!(map.pieces, [(0, 10), (100, 5)]);
        assert_eq!(map.data_bytes(), 15);
        for (numbers, size) in [
            (&[0, 10, 5, 5][..], 100),
            (&[0, 10], 9),
            (&[0], 9),
            (&[u64::MAX, 2], u64::MAX),
            (&[], u64::MAX),
        ] {
            assert_eq!(SparseMap::new(numbers, size), Err(Reason::BadSparseMap));
        }
    }
}
