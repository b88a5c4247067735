//! Pictures that a program has as BMP or JPEG alone, as PNG too: it is what nearly every program takes, and made where
//! the picture was copied, when somebody asks for it.

use std::fs::File;
use std::io::{self, BufWriter, Cursor, Write};

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{DynamicImage, ImageError, ImageFormat, ImageReader, Limits};

use crate::kept::Kept;

/// What is made.
pub const PNG: &str = "image/png";
/// Pixels of a picture at most: a screen of 8K, and some.
pub const PIXELS: u64 = 40_000_000;
/// Bytes that it may have as it comes: four to a pixel, and what goes before them.
pub const MOST: u64 = PIXELS * 4 + 64 * 1024;
/// Of what it is made, the best first.
const SOURCES: [(&str, ImageFormat); 5] = [
    ("image/bmp", ImageFormat::Bmp),
    ("image/x-bmp", ImageFormat::Bmp),
    ("image/x-MS-bmp", ImageFormat::Bmp),
    ("image/jpeg", ImageFormat::Jpeg),
    ("image/jpg", ImageFormat::Jpeg),
];

/// Why none can be made.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// It is of another kind than it says.
    #[error("The picture cannot be made PNG: {0}")]
    Image(#[from] ImageError),
    /// The system.
    #[error("The picture cannot be made PNG: {0}")]
    Io(#[from] io::Error),
}

/// Of which of these types a PNG can be made, where none of them is one.
#[must_use]
pub fn source(types: &[String]) -> Option<&str> {
    if types.iter().any(|name| name == PNG) {
        return None;
    }
    SOURCES.iter().find_map(|(source, _)| types.iter().find(|name| name == source)).map(String::as_str)
}

/// Makes one of a picture of this type.
///
/// # Errors
/// [`PictureError`].
pub fn to_png(kind: &str, bytes: &[u8]) -> Result<Kept, PictureError> {
    let format =
        SOURCES.iter().find(|(name, _)| *name == kind).map_or(ImageFormat::Bmp, |(_, format)| *format);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(65_535);
    limits.max_image_height = Some(65_535);
    limits.max_alloc = Some(PIXELS * 4);
    reader.limits(limits);
    let picture: DynamicImage = reader.decode()?;
    let kept = Kept::new()?;
    write(&picture, kept.writer()?)?;
    Ok(kept)
}

fn write(picture: &DynamicImage, file: File) -> Result<(), PictureError> {
    let mut out = BufWriter::new(file);
    // Quickly: somebody waits for it, and it goes no farther than to the machine around this one.
    picture.write_with_encoder(PngEncoder::new_with_quality(
        &mut out,
        CompressionType::Fast,
        FilterType::Adaptive,
    ))?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// A picture of two pixels, one red, one green.
    fn picture(format: ImageFormat) -> Vec<u8> {
        let pixels = image::RgbImage::from_raw(2, 1, vec![255, 0, 0, 0, 255, 0]).unwrap();
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::from(pixels).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn made(kind: &str, bytes: &[u8]) -> Result<DynamicImage, PictureError> {
        let mut png = Vec::new();
        to_png(kind, bytes)?.reader()?.read_to_end(&mut png)?;
        Ok(image::load_from_memory_with_format(&png, ImageFormat::Png)?)
    }

    #[test]
    fn the_same_picture_comes_out() {
        let png = made("image/bmp", &picture(ImageFormat::Bmp)).unwrap();
        assert_eq!(png.to_rgb8().into_raw(), [255, 0, 0, 0, 255, 0]);
        let png = made("image/jpeg", &picture(ImageFormat::Jpeg)).unwrap();
        assert_eq!((png.width(), png.height()), (2, 1));
    }

    #[test]
    fn what_is_no_picture_or_too_large_is_refused_before_room_is_made_for_it() {
        assert!(made("image/bmp", b"BM").is_err() && made("image/jpeg", &[0; 100]).is_err());
        let mut large = picture(ImageFormat::Bmp);
        // Width and height of BITMAPINFOHEADER.
        large[18..22].copy_from_slice(&60_000i32.to_le_bytes());
        large[22..26].copy_from_slice(&60_000i32.to_le_bytes());
        assert!(made("image/bmp", &large).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let whole = [picture(ImageFormat::Bmp), picture(ImageFormat::Jpeg)];
        for (kind, whole) in ["image/bmp", "image/jpeg"].into_iter().zip(&whole) {
            for at in 0..whole.len() {
                let _ = made(kind, &whole[..at]);
                for bit in [0x01, 0x80, 0xff] {
                    let mut torn = whole.clone();
                    torn[at] ^= bit;
                    let _ = made(kind, &torn);
                }
            }
        }
    }

    #[test]
    fn a_png_that_is_there_is_not_made() {
        let names = |types: &[&str]| types.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(source(&names(&["image/jpeg", "image/bmp"])), Some("image/bmp"));
        assert_eq!(source(&names(&["image/jpeg", "image/png"])), None);
        assert_eq!(source(&names(&["text/html"])), None);
    }
}
