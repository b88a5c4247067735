//! What comes from a display, by way of the kernel.

use guest_desktop::display::{edid as read, source};
use hospes_protocol::display::Size;

const BLOCK: usize = 128;
const HEADER: [u8; 8] = [0, 255, 255, 255, 255, 255, 255, 0];

/// The first byte says how much of the rest is made to look like an EDID: a reader that stops at the first sum finds
/// nothing further in.
pub fn edid(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    for (at, block) in bytes.chunks_exact_mut(BLOCK).enumerate() {
        match at {
            0 if how & 1 != 0 => block[..8].copy_from_slice(&HEADER),
            // No timing of its own, so that the extensions are looked at.
            0 if how & 2 != 0 => block[54..56].fill(0),
            _ if how & 4 != 0 => block[0] = 0x70,
            _ => (),
        }
        if how & 8 != 0 {
            block[BLOCK - 1] = 0;
            let sum = block.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            block[BLOCK - 1] = sum.wrapping_neg();
        }
    }
    let Some(best) = read::best(&bytes) else { return };
    let Size { width, height } = best.size;
    assert!(width > 0 && height > 0 && best.refresh > 0, "{best:?}");
    assert!(best.size.clamped().is_sane(), "{best:?}");
    // What lies behind the blocks that are worth reading changes nothing.
    assert_eq!(read::best(&bytes[..bytes.len().min(read::MOST)]), Some(best));
}

/// Words with a zero behind each.
pub fn uevent(data: &[u8]) {
    let display = source::is_display(data);
    let word = b"SUBSYSTEM=drm";
    assert!(!display || data.windows(word.len()).any(|part| part == word));
    let told = [data, b"\0SUBSYSTEM=drm\0"].concat();
    assert!(source::is_display(&told));
}
