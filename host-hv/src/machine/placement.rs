//! Where kernel, initramfs and device tree go in the guest's memory.
//!
//! Source: `Documentation/arch/arm64/booting.rst` of Linux 6.12.

use thiserror::Error;

use super::kernel::Kernel;
use super::layout::MEMORY;

/// A kernel's base is a multiple of this.
const BASE_ALIGN: u64 = 2 << 20;
/// The most that a device tree may take.
pub const TREE_MAX: u64 = 2 << 20;

/// The guest's memory cannot hold what is to start in it.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "The kernel and its initramfs take {needs} MiB, and the machine has {has} MiB: give it more with --memory"
)]
pub struct TooSmall {
    needs: u64,
    has: u64,
}

/// Guest physical addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The device tree: at the memory's begin, below the kernel.
    pub tree: u64,
    /// The kernel's first instruction.
    pub kernel: u64,
    /// The initramfs: behind the kernel, as near as it may be.
    pub initramfs: Option<std::ops::Range<u64>>,
}

impl Placement {
    /// Finds room in `memory` bytes.
    ///
    /// # Errors
    /// There is none.
    pub fn find(memory: u64, kernel: &Kernel, initramfs: Option<u64>) -> Result<Self, TooSmall> {
        let entry = MEMORY + BASE_ALIGN + kernel.text_offset;
        let after = (entry + kernel.size).next_multiple_of(BASE_ALIGN);
        let initramfs = initramfs.map(|len| after..after.saturating_add(len));
        let end = initramfs.as_ref().map_or(after, |range| range.end);
        if end.saturating_sub(MEMORY) > memory {
            return Err(TooSmall { needs: (end - MEMORY).div_ceil(1 << 20), has: memory >> 20 });
        }
        Ok(Self { tree: MEMORY, kernel: entry, initramfs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps_and_each_is_aligned() {
        let kernel = Kernel { image: Vec::new(), text_offset: 0x8_0000, size: 33_000_000 };
        let found = Placement::find(256 << 20, &kernel, Some(5_000_001)).unwrap();
        assert_eq!(found.tree + TREE_MAX + 0x8_0000, found.kernel);
        let initramfs = found.initramfs.unwrap();
        assert!(initramfs.start >= found.kernel + kernel.size && initramfs.start.is_multiple_of(BASE_ALIGN));
        assert_eq!(initramfs.end - initramfs.start, 5_000_001);
    }

    #[test]
    fn too_little_memory_is_told_with_what_it_takes() {
        let kernel = Kernel { image: Vec::new(), text_offset: 0, size: 60 << 20 };
        assert!(Placement::find(62 << 20, &kernel, None).is_ok());
        let error = Placement::find(62 << 20, &kernel, Some(1)).unwrap_err();
        assert_eq!(error, TooSmall { needs: 63, has: 62 });
        assert!(Placement::find(1 << 30, &kernel, Some(u64::MAX)).is_err());
    }
}
