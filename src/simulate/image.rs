//! Pictures: 8×8 PNG files, a pattern for each seed, made without an image library.
//!
//! # Format
//!
//! PNG with one stored (uncompressed) deflate block: signature, `IHDR` (8 bit RGB), `IDAT`, `IEND`.

/// Pixels on a side. As small as a picture that a person can tell from another.
const SIDE: u8 = 8;
const BYTES_PER_PIXEL: usize = 3;

/// A whole PNG file, the same for the same seed.
pub(super) fn png(seed: [u8; 32]) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let side = u32::from(SIDE).to_be_bytes();
    // Bit depth 8, colour type RGB, deflate, adaptive filters, not interlaced.
    chunk(&mut file, *b"IHDR", &[&side[..], &side[..], &[8, 2, 0, 0, 0]].concat());
    chunk(&mut file, *b"IDAT", &zlib_stored(&pixels(seed)));
    chunk(&mut file, *b"IEND", &[]);
    file
}

/// Rows of filter byte 0 and pixels: the seed's bits, mirrored, in a colour of the seed's.
fn pixels(seed: [u8; 32]) -> Vec<u8> {
    let [red, green, blue, bits @ ..] = seed;
    let mut rows = Vec::with_capacity(usize::from(SIDE) * (1 + usize::from(SIDE) * BYTES_PER_PIXEL));
    for (_, byte) in (0..SIDE).zip(bits) {
        rows.push(0);
        for x in 0..SIDE {
            let mirrored = x.min(SIDE - 1 - x);
            let on = byte >> mirrored & 1 == 1;
            rows.extend(if on { [red, green, blue] } else { [0xff; BYTES_PER_PIXEL] });
        }
    }
    rows
}

fn chunk(file: &mut Vec<u8>, kind: [u8; 4], data: &[u8]) {
    let length = u32::try_from(data.len()).expect("a picture's chunks are a few hundred bytes");
    file.extend(length.to_be_bytes());
    file.extend(kind);
    file.extend(data);
    file.extend(crc32(kind.iter().chain(data)).to_be_bytes());
}

/// A zlib stream of one stored block.
fn zlib_stored(data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).expect("a picture's pixels fit a stored block of 64 KiB");
    let mut stream = vec![0x78, 0x01, 0x01];
    stream.extend(length.to_le_bytes());
    stream.extend((!length).to_le_bytes());
    stream.extend(data);
    stream.extend(adler32(data).to_be_bytes());
    stream
}

/// CRC-32 as PNG has it (the crate in use elsewhere is the Castagnoli one).
fn crc32<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    !bytes.fold(u32::MAX, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
        crc
    })
}

fn adler32(bytes: &[u8]) -> u32 {
    let (low, high) = bytes.iter().fold((1_u32, 0_u32), |(low, high), byte| {
        let low = (low + u32::from(*byte)) % 65_521;
        (low, (high + low) % 65_521)
    });
    high << 16 | low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standards() {
        assert_eq!(crc32(b"123456789".iter()), 0xcbf4_3926);
        assert_eq!(adler32(b"Wikipedia"), 0x11e6_0398);
    }

    #[test]
    fn a_picture_is_a_whole_png_of_its_seed() {
        let picture = png([7; 32]);
        assert!(picture.starts_with(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x08\0\0\0\x08\x08\x02\0\0\0"));
        assert!(picture.ends_with(b"\0\0\0\0IEND\xae\x42\x60\x82"));
        assert_eq!(picture, png([7; 32]));
        assert_ne!(picture, png([8; 32]));
    }
}
