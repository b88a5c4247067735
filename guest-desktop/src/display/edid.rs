//! What a display says it would best be driven at: the first detailed timing of its EDID.
//!
//! VESA Enhanced EDID Standard release A, revision 2, sections 3.1 (base block) and 3.10.2 (detailed timing); for sides
//! of 4096 pixels and more, which do not fit there, `DisplayID` 1.3, section 4.3 (type I timing) in an extension block.
//! A VMM makes these bytes, and any program with a card may: they are taken for nothing but a wish.

use hospes_protocol::display::Size;

/// Bytes of a block.
const BLOCK: usize = 128;
/// Blocks that are looked at.
const BLOCKS: usize = 4;
const HEADER: [u8; 8] = [0, 255, 255, 255, 255, 255, 255, 0];
/// The first detailed timing's place in the base block.
const TIMING: std::ops::Range<usize> = 54..72;
/// The tag of an extension that is `DisplayID`, and of the timings in it.
const DISPLAY_ID: u8 = 0x70;
const TYPE_ONE: u8 = 3;

/// A display's best timing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Best {
    /// Its size.
    pub size: Size,
    /// Pictures in a thousand seconds.
    pub refresh: u32,
}

/// Bytes of an EDID that are worth reading.
pub const MOST: usize = BLOCK * BLOCKS;

/// The best timing of an EDID; none where it has none, or is broken.
#[must_use]
pub fn best(edid: &[u8]) -> Option<Best> {
    let mut blocks = edid.chunks_exact(BLOCK).take(BLOCKS);
    let base = blocks.next().filter(|base| base.starts_with(&HEADER) && is_whole(base))?;
    let detailed = base.get(TIMING).and_then(detailed);
    detailed.or_else(|| blocks.filter(|block| block[0] == DISPLAY_ID && is_whole(block)).find_map(display_id))
}

fn is_whole(block: &[u8]) -> bool {
    block.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// Eighteen bytes of the base block. With no pixel clock they are something else.
fn detailed(bytes: &[u8]) -> Option<Best> {
    let &[c0, c1, x, x_blank, x_high, y, y_blank, y_high, ..] = bytes else { return None };
    let joined = |low: u8, high: u8| u32::from(low) | u32::from(high) << 8;
    timing(
        u64::from(joined(c0, c1)) * 10_000,
        (joined(x, x_high >> 4), joined(x_blank, x_high & 15)),
        (joined(y, y_high >> 4), joined(y_blank, y_high & 15)),
    )
}

/// The preferred, or else the first, of an extension's timings.
fn display_id(block: &[u8]) -> Option<Best> {
    // Its section: version, bytes of its data blocks, product type, extensions; then the data blocks.
    let len = usize::from(*block.get(2)?);
    let mut rest = block.get(5..BLOCK - 1)?;
    rest = rest.get(..len).unwrap_or(rest);
    let mut first = None;
    while let &[tag, _, len, ref data @ ..] = rest {
        let len = usize::from(len);
        let (data, next) = data.split_at_checked(len)?;
        for timing in data.chunks_exact(20).filter(|_| tag == TYPE_ONE) {
            let best = type_one(timing);
            if timing[3] & 0x80 != 0 && best.is_some() {
                return best;
            }
            first = first.or(best);
        }
        rest = next;
    }
    first
}

fn type_one(bytes: &[u8]) -> Option<Best> {
    let &[c0, c1, c2, _, x0, x1, xb0, xb1, _, _, _, _, y0, y1, yb0, yb1, ..] = bytes else { return None };
    // What is counted here is one less than what is meant.
    let joined = |low: u8, high: u8| (u32::from(low) | u32::from(high) << 8) + 1;
    let clock = u64::from(u32::from_le_bytes([c0, c1, c2, 0])) + 1;
    timing(clock * 10_000, (joined(x0, x1), joined(xb0, xb1)), (joined(y0, y1), joined(yb0, yb1)))
}

/// A pixel clock in hertz; pixels and blank ones, across and down.
fn timing(clock: u64, (width, x_blank): (u32, u32), (height, y_blank): (u32, u32)) -> Option<Best> {
    if clock == 0 || width == 0 || height == 0 {
        return None;
    }
    let all = u64::from(width + x_blank) * u64::from(height + y_blank);
    let refresh = u32::try_from(clock * 1000 / all).ok().filter(|refresh| *refresh > 0)?;
    Some(Best { size: Size { width, height }, refresh })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sealed(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
        block[BLOCK - 1] = 0;
        let sum = block.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        block[BLOCK - 1] = sum.wrapping_neg();
        block
    }

    /// A base block whose first timing is of this size, at 75 pictures a second and with blanks as QEMU has them.
    pub(crate) fn edid(width: u16, height: u16) -> Vec<u8> {
        let mut block = [0; BLOCK];
        block[..8].copy_from_slice(&HEADER);
        let (x_blank, y_blank) = (width / 3, height / 30);
        let clock = u64::from(width + x_blank) * u64::from(height + y_blank) * 75 / 10_000;
        let clock = u16::try_from(clock).unwrap().to_le_bytes();
        let [x, xh] = width.to_le_bytes();
        let [y, yh] = height.to_le_bytes();
        let [xb, xbh] = x_blank.to_le_bytes();
        let [yb, ybh] = y_blank.to_le_bytes();
        block[54..62].copy_from_slice(&[clock[0], clock[1], x, xb, xh << 4 | xbh, y, yb, yh << 4 | ybh]);
        sealed(block).to_vec()
    }

    fn extension(timings: &[(u16, u16, bool)]) -> Vec<u8> {
        let mut block = [0; BLOCK];
        let len = u8::try_from(3 + timings.len() * 20).unwrap();
        block[..8].copy_from_slice(&[DISPLAY_ID, 0x13, len, 4, 0, TYPE_ONE, 0, len - 3]);
        for (at, (width, height, preferred)) in timings.iter().enumerate() {
            let [x, y] = [width - 1, height - 1].map(u16::to_le_bytes);
            let flags = if *preferred { 0x88 } else { 8 };
            let bytes = [0, 0, 3, flags, x[0], x[1], 99, 0, 0, 0, 0, 0, y[0], y[1], 9, 0, 0, 0, 0, 0];
            block[8 + at * 20..][..20].copy_from_slice(&bytes);
        }
        sealed(block).to_vec()
    }

    #[test]
    fn the_first_timing_is_the_best() {
        let best = best(&edid(1733, 911)).unwrap();
        assert_eq!(best.size, Size { width: 1733, height: 911 });
        assert!((74_000..76_000).contains(&best.refresh), "{}", best.refresh);
    }

    #[test]
    fn what_is_wider_than_4095_stands_in_an_extension() {
        let mut bytes = edid(640, 480);
        bytes[54..56].fill(0);
        let mut base: [u8; BLOCK] = bytes[..].try_into().unwrap();
        base = sealed(base);
        let with = |timings: &[(u16, u16, bool)]| best(&[&base[..], &extension(timings)].concat());
        assert_eq!(with(&[(5120, 2880, true)]).unwrap().size, Size { width: 5120, height: 2880 });
        let both = [(640, 480, false), (7680, 4320, true)];
        assert_eq!(with(&both).unwrap().size, Size { width: 7680, height: 4320 });
        assert_eq!(with(&both[..1]).unwrap().size, Size { width: 640, height: 480 });
        assert_eq!(with(&[]), None);
    }

    #[test]
    fn what_is_broken_says_nothing() {
        let good = edid(1024, 768);
        assert!(best(&good[..127]).is_none());
        assert!(best(&[]).is_none());
        for at in [0, 60, 127] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(best(&bad).is_none(), "{at}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), whole: bool) {
            let mut bytes = bytes;
            if whole {
                // Past the header and the sums, where the reading is.
                for (at, block) in bytes.chunks_exact_mut(BLOCK).enumerate() {
                    if at == 0 { block[..8].copy_from_slice(&HEADER); block[54..56].fill(0); } else { block[0] = DISPLAY_ID; }
                    let fixed = sealed(block.try_into().unwrap());
                    block.copy_from_slice(&fixed);
                }
            }
            if let Some(best) = best(&bytes) {
                prop_assert!(best.size.width > 0 && best.size.height > 0 && best.refresh > 0);
            }
        }

        #[test]
        fn every_size_is_read_as_it_was_written(width in 100_u16..4000, height in 100_u16..2000) {
            // A base block's clock ends at 655 MHz.
            prop_assume!(u64::from(width) * u64::from(height) < 6_000_000);
            prop_assert_eq!(best(&edid(width, height)).unwrap().size, Size { width: width.into(), height: height.into() });
        }
    }
}
