//! A kernel's file: an arm64 `Image` as it is, compressed by gzip, or in the EFI shell that distributions ship (zboot).
//!
//! Source: `Documentation/arch/arm64/booting.rst` and `drivers/firmware/efi/libstub/zboot-header.S` of Linux 6.12.

use std::io::{self, Read};

use flate2::read::GzDecoder;
use thiserror::Error;

/// The largest kernel that is unpacked: a distribution's has some 60 MiB.
const IMAGE_MAX: u64 = 512 << 20;
const HEADER_LEN: usize = 64;

/// Why a file is no kernel for these machines.
#[derive(Debug, Error)]
pub enum KernelError {
    /// It is something else.
    #[error(
        "It is {found}, not an arm64 kernel (Image, Image.gz or EFI zboot; a distribution's /boot/vmlinuz is one)"
    )]
    NotAKernel {
        /// What it looks like.
        found: &'static str,
    },
    /// It is packed in a way that is not known here.
    #[error(
        "It is packed with {0}, which this program cannot unpack: gunzip or repack it as Image or Image.gz"
    )]
    Packing(String),
    /// It does not unpack.
    #[error("It does not unpack: {0}. The file is damaged or cut short")]
    Damaged(io::Error),
    /// It unpacks to more than anybody's kernel.
    #[error("It unpacks to more than {} MiB", IMAGE_MAX >> 20)]
    TooLarge,
    /// Its header says that it is not for this kind of machine.
    #[error("It is a big-endian kernel, and the machines made here are little-endian")]
    BigEndian,
}

/// A kernel, ready to be laid into a guest's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The image's bytes, its first instruction first.
    pub image: Vec<u8>,
    /// How far behind a multiple of 2 MiB it has to lie.
    pub text_offset: u64,
    /// How much memory it takes from there on, its unwritten data included.
    pub size: u64,
}

impl Kernel {
    /// Reads one from a file's bytes.
    ///
    /// # Errors
    /// They are not a kernel that starts here.
    pub fn parse(mut bytes: Vec<u8>) -> Result<Self, KernelError> {
        // A zboot has a gzip in it, a gzip an image; nothing has more shells.
        if let Some(payload) = zboot(&bytes)? {
            bytes = unpack(payload)?;
        } else if bytes.starts_with(&[0x1f, 0x8b]) {
            bytes = unpack(&bytes)?;
        }
        let Some(header) = bytes.first_chunk::<HEADER_LEN>().filter(|header| header[56..60] == *b"ARM\x64")
        else {
            return Err(KernelError::NotAKernel { found: guess(&bytes) });
        };
        let (text_offset, size, flags) = (long(header, 8), long(header, 16), long(header, 24));
        if flags & 1 != 0 {
            return Err(KernelError::BigEndian);
        }
        // Before Linux 3.17 neither field meant anything.
        let (text_offset, size) = if size == 0 { (0x8_0000, 16 << 20) } else { (text_offset, size) };
        let size = size.max(bytes.len() as u64);
        if size > IMAGE_MAX || text_offset >= 2 << 20 {
            return Err(KernelError::TooLarge);
        }
        Ok(Self { image: bytes, text_offset, size })
    }
}

/// What is packed in an EFI zboot image; none where the bytes are not one.
fn zboot(bytes: &[u8]) -> Result<Option<&[u8]>, KernelError> {
    let Some(header) = bytes.first_chunk::<HEADER_LEN>() else { return Ok(None) };
    if !(header.starts_with(b"MZ") && header[4..8] == *b"zimg") {
        return Ok(None);
    }
    let packing: Vec<u8> = header[24..56].iter().copied().take_while(|byte| *byte != 0).collect();
    if packing != b"gzip" {
        return Err(KernelError::Packing(packing.escape_ascii().to_string()));
    }
    let (start, len) = (word(header, 8) as usize, word(header, 12) as usize);
    let payload = start.checked_add(len).and_then(|end| bytes.get(start..end));
    payload.map(Some).ok_or_else(|| KernelError::Damaged(io::ErrorKind::UnexpectedEof.into()))
}

fn unpack(packed: &[u8]) -> Result<Vec<u8>, KernelError> {
    let mut image = Vec::new();
    GzDecoder::new(packed).take(IMAGE_MAX + 1).read_to_end(&mut image).map_err(KernelError::Damaged)?;
    if image.len() as u64 > IMAGE_MAX { Err(KernelError::TooLarge) } else { Ok(image) }
}

fn long(header: &[u8; HEADER_LEN], at: usize) -> u64 {
    u64::from(word(header, at)) | u64::from(word(header, at + 4)) << 32
}

fn word(header: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

/// What people take for a kernel by mistake.
fn guess(bytes: &[u8]) -> &'static str {
    match bytes {
        [] => "empty",
        [0x7f, b'E', b'L', b'F', ..] => "an ELF file, perhaps vmlinux",
        [b'Q', b'F', b'I', 0xfb, ..] => "a qcow2 disk image",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "packed with xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "packed with zstd",
        _ if bytes.get(0x202..0x206) == Some(b"HdrS") => "a kernel for x86",
        [b'M', b'Z', ..] => "an EFI program",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    fn image(text_offset: u64, size: u64, flags: u64) -> Vec<u8> {
        let mut image = vec![0x5a; 4096];
        image[..HEADER_LEN].fill(0);
        image[8..16].copy_from_slice(&text_offset.to_le_bytes());
        image[16..24].copy_from_slice(&size.to_le_bytes());
        image[24..32].copy_from_slice(&flags.to_le_bytes());
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(bytes).unwrap();
        packer.finish().unwrap()
    }

    fn shell(packing: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 128];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[4..8].copy_from_slice(b"zimg");
        bytes[8..12].copy_from_slice(&128_u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        bytes[24..24 + packing.len()].copy_from_slice(packing);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn all_three_shells_have_the_same_kernel() {
        let plain = image(0, 8192, 0xa);
        let kernel = Kernel { image: plain.clone(), text_offset: 0, size: 8192 };
        assert_eq!(Kernel::parse(plain.clone()).unwrap(), kernel);
        assert_eq!(Kernel::parse(gzip(&plain)).unwrap(), kernel);
        assert_eq!(Kernel::parse(shell(b"gzip", &gzip(&plain))).unwrap(), kernel);
    }

    #[test]
    fn an_old_kernel_says_nothing_of_its_size() {
        let kernel = Kernel::parse(image(1, 0, 0)).unwrap();
        assert_eq!((kernel.text_offset, kernel.size), (0x8_0000, 16 << 20));
    }

    #[test]
    fn what_it_is_instead_is_said() {
        let mut x86 = vec![0; 0x300];
        x86[0x202..0x206].copy_from_slice(b"HdrS");
        for (bytes, words) in [
            (Vec::new(), "empty"),
            (b"\x7fELF\x02".to_vec(), "vmlinux"),
            (x86, "x86"),
            (b"QFI\xfb".to_vec(), "qcow2"),
            (image(0, 8192, 1), "big-endian"),
            (image(0, u64::MAX, 0), "more than 512 MiB"),
            (shell(b"zstd22", b"."), "packed with zstd22"),
            (shell(b"gzip", &gzip(&[0; 9])[..12]), "damaged"),
            (gzip(b"hello"), "something else"),
        ] {
            let error = Kernel::parse(bytes).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..3) {
            if kind == 1 && bytes.len() >= 8 {
                bytes[..2].copy_from_slice(b"MZ");
                bytes[4..8].copy_from_slice(b"zimg");
            } else if kind == 2 && bytes.len() >= HEADER_LEN {
                bytes[56..60].copy_from_slice(b"ARM\x64");
            }
            let _ = Kernel::parse(bytes);
        }
    }
}
