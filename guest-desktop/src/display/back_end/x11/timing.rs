//! Timings for a mode of any size: VESA Coordinated Video Timings 1.2, reduced blanking, but that a width stays as it is. A
//! virtual display has no beam; these are what a real one could be driven at.

use hospes_protocol::display::Size;

/// A mode's timings, in pixels and lines from the picture's own corner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timing {
    pub(super) width: u16,
    pub(super) height: u16,
    /// Pixels a second.
    pub(super) clock: u32,
    /// Where the horizontal sync begins and ends.
    pub(super) x_sync: (u16, u16),
    /// Pixels of a line, blank ones included.
    pub(super) x_total: u16,
    /// Where the vertical sync begins and ends.
    pub(super) y_sync: (u16, u16),
    /// Lines, blank ones included.
    pub(super) y_total: u16,
}

/// Blank pixels of a line, those before the sync, and those of it.
const X_BLANK: (u16, u16, u16) = (160, 48, 32);
/// Lines before the vertical sync, those of it, and at least so many behind it.
const Y_FRONT: u16 = 3;
const Y_SYNC: u16 = 8;
const Y_BACK: u16 = 6;
/// Pixels of a side at most, [`Size::SIDE`].
const SIDE: u16 = 8192;
/// Microseconds that the lines' blanking takes at least.
const BLANK_US: u64 = 460;

impl Timing {
    /// For this size and so many pictures in a thousand seconds.
    pub(super) fn reduced(size: Size, refresh: u32) -> Self {
        let side = |len: u32| u16::try_from(len).unwrap_or(SIDE).min(SIDE);
        let (width, height) = (side(size.width), side(size.height));
        let refresh = u64::from(refresh.clamp(1_000, 500_000));
        // Microseconds of a picture, less its blanking, are those of its lines.
        let lines_us = (1_000_000_000 / refresh).saturating_sub(BLANK_US).max(1);
        let blank = u16::try_from(BLANK_US * u64::from(height) / lines_us + 1).unwrap_or(u16::MAX / 8);
        let y_total = height + blank.clamp(Y_FRONT + Y_SYNC + Y_BACK, u16::MAX / 8);
        let x_total = width + X_BLANK.0;
        let clock = u64::from(x_total) * u64::from(y_total) * refresh / 1000;
        Self {
            width,
            height,
            clock: u32::try_from(clock).unwrap_or(u32::MAX),
            x_sync: (width + X_BLANK.1, width + X_BLANK.1 + X_BLANK.2),
            x_total,
            y_sync: (height + Y_FRONT, height + Y_FRONT + Y_SYNC),
            y_total,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_the_standards_timings() {
        let timing = Timing::reduced(Size { width: 1920, height: 1080 }, 60_000);
        assert_eq!((timing.x_total, timing.y_total), (2080, 1111));
        // 138.65 MHz, as the standard's own sheet has it to a quarter of a MHz.
        assert!((138_500_000..138_800_000).contains(&timing.clock), "{}", timing.clock);
    }

    #[test]
    fn every_size_and_rate_has_a_beam_that_comes_back() {
        for (width, height) in [(320, 200), (1733, 911), (8192, 4096), (320, 8192)] {
            for refresh in [0, 1_000, 59_950, 75_000, u32::MAX] {
                let Timing { width, height, x_sync, x_total, y_sync, y_total, clock } =
                    Timing::reduced(Size { width, height }, refresh);
                assert!(width < x_sync.0 && x_sync.0 < x_sync.1 && x_sync.1 < x_total);
                assert!(height < y_sync.0 && y_sync.0 < y_sync.1 && y_sync.1 < y_total);
                assert!(clock > 0);
            }
        }
    }
}
