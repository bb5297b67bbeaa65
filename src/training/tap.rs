//! Copies what is read through it, up to a bound.

use std::fmt;
use std::io::{self, Read, Write};

/// A reader that ends behind `max` bytes.
pub(super) struct Tap<'c, R> {
    input: R,
    copy: Option<&'c mut dyn Write>,
    /// Bytes that may still be read: one more than the bound, by which it shows that there are more.
    left: u64,
    failed: Option<io::Error>,
}

impl<R> fmt::Debug for Tap<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap").field("left", &self.left).field("failed", &self.failed).finish_non_exhaustive()
    }
}

impl<'c, R> Tap<'c, R> {
    pub(super) fn new(input: R, copy: Option<&'c mut dyn Write>, max: u64) -> Self {
        Self { input, copy, left: max + 1, failed: None }
    }

    /// Why the copy could not be written.
    pub(super) fn failed(&mut self) -> Option<io::Error> {
        self.failed.take()
    }

    /// Whether there were more bytes than the bound.
    pub(super) const fn is_over(&self) -> bool {
        self.left == 0
    }
}

impl<R: Read> Read for Tap<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&mut self.input).take(self.left).read(buffer)?;
        self.left -= count as u64;
        if let Some(copy) = &mut self.copy
            && let Err(error) = copy.write_all(buffer.get(..count).unwrap_or_default())
        {
            let kind = error.kind();
            self.failed = Some(error);
            return Err(kind.into());
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_read_is_copied_up_to_the_bound() {
        for (max, over) in [(4, false), (3, true)] {
            let mut copy = Vec::new();
            let mut tap = Tap::new(&b"abcd"[..], Some(&mut copy), max);
            io::copy(&mut tap, &mut io::sink()).unwrap();
            assert_eq!((tap.is_over(), tap.failed().is_some()), (over, false));
            assert_eq!(copy, b"abcd");
        }
        let mut endless = Tap::new(io::repeat(b'x'), None, 1000);
        assert_eq!(io::copy(&mut endless, &mut io::sink()).unwrap(), 1001);
    }

    #[test]
    fn a_copy_that_fails_is_told_from_an_input_that_does() {
        let mut full = Full;
        let mut tap = Tap::new(&b"abcd"[..], Some(&mut full), 10);
        assert!(tap.read(&mut [0; 4]).is_err());
        assert_eq!(tap.failed().unwrap().kind(), io::ErrorKind::StorageFull);
    }
}
