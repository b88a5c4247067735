//! Display: how the guest's screens are to be, and how they are.
//!
//! ```text
//! host                                 guest's desktop
//!  | DISPLAY: set 2560x1600 at scale 2  |
//!  |----------------------------------->|
//!  |   DISPLAY_STATE: screens as they   |  once they are so, or cannot be: each says which
//!  |   are now                          |
//!  |<-----------------------------------|
//!  | BYE                                |
//! ```
//! One request on a connection, one answer, from the helper of the desktop in front. A screen's size follows by itself
//! what the VM's own display offers (its EDID); this is for what no EDID carries, and for looking.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::{OUTPUT_NAME, OUTPUTS};
use crate::open_enum;

/// A screen's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Size {
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
}

impl Size {
    /// The smallest that a screen is set to: below it compositors and the X server fail.
    pub const LEAST: Self = Self { width: 320, height: 200 };
    /// Pixels on either side at most: what virtio-gpu has.
    pub const SIDE: u32 = 8192;
    /// Pixels in all at most. Twice as many bytes as fit into a virtual card's memory would be asked for beyond it (two
    /// buffers of four bytes a pixel in 256 MiB), and the kernel then fails behind the compositor's back.
    pub const PIXELS: u64 = 1 << 25;

    /// Whether a screen can be set to it.
    #[must_use]
    pub fn is_sane(self) -> bool {
        self == self.clamped()
    }

    /// The nearest size of much the same shape that a screen can be set to.
    #[must_use]
    pub fn clamped(self) -> Self {
        let side = |len: u32, least: u32| u64::from(len.clamp(least, Self::SIDE));
        let (width, mut height) =
            (side(self.width, Self::LEAST.width), side(self.height, Self::LEAST.height));
        let mut width = width;
        if width * height > Self::PIXELS {
            // Both sides shrink alike; the root is of a number below 2^26, so a few bits are all that is lost.
            let ratio = width * 1_000_000 / height;
            height = (Self::PIXELS * 1_000_000 / ratio).isqrt().clamp(Self::LEAST.height.into(), 8192);
            width = (Self::PIXELS / height).min(height * ratio / 1_000_000);
        }
        let cut = |len: u64| u32::try_from(len).unwrap_or(Self::SIDE);
        Self { width: cut(width), height: cut(height) }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// How much larger than its pixels a screen draws things, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Scale(pub u32);

impl Scale {
    /// One to one.
    pub const ONE: Self = Self(1000);
    /// The smallest and the greatest there are.
    pub const LIMITS: (Self, Self) = (Self(500), Self(8000));

    /// Whether it is within the limits.
    #[must_use]
    pub fn is_sane(self) -> bool {
        (Self::LIMITS.0..=Self::LIMITS.1).contains(&self)
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.0 / 1000, self.0 % 1000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// Where a screen's upper left corner is, in the desktop's own units: pixels divided by the scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub struct Position {
    /// From the left.
    pub x: i32,
    /// From the top.
    pub y: i32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.x, self.y)
    }
}

/// Why words name no size, scale or position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// No size.
    #[error("{0:?} is no size: WIDTHxHEIGHT in pixels, such as 2560x1600")]
    Size(String),
    /// A size that no screen can have.
    #[error("{0} cannot be: a side has 320 (200 upright) to 8192 pixels, and all together 33554432 at most")]
    Limit(Size),
    /// No scale.
    #[error("{0:?} is no scale: 0.5 to 8, with at most three decimals")]
    Scale(String),
    /// No position.
    #[error("{0:?} is no position: X,Y, such as 1920,0")]
    Position(String),
}

impl FromStr for Size {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let sides = text.split_once(['x', 'X']);
        let parsed = sides.and_then(|(width, height)| Some((number(width)?, number(height)?)));
        let (width, height) = parsed.ok_or_else(|| ParseError::Size(text.to_owned()))?;
        let size = Self { width, height };
        if size.is_sane() { Ok(size) } else { Err(ParseError::Limit(size)) }
    }
}

impl FromStr for Scale {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let thousandths = || {
            let thousandths = number(decimals).filter(|_| decimals.len() <= 3)?;
            let shift = 10_u32.pow(3 - u32::try_from(decimals.len()).ok()?);
            number(whole)?.checked_mul(1000)?.checked_add(thousandths * shift)
        };
        let scale = thousandths().map(Self).filter(|scale| scale.is_sane());
        scale.ok_or_else(|| ParseError::Scale(text.to_owned()))
    }
}

impl FromStr for Position {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parsed = text.split_once(',').and_then(|(x, y)| Some((x.parse().ok()?, y.parse().ok()?)));
        let (x, y) = parsed.ok_or_else(|| ParseError::Position(text.to_owned()))?;
        Ok(Self { x, y })
    }
}

/// Digits alone: no sign, no space.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// How one screen is to be. What is not said stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Want {
    /// The screen's name, as the desktop calls it: `Virtual-1`. Empty for the only one.
    pub output: String,
    /// Its size. It then follows the VM's display no more, until [`Ask::Follow`].
    pub size: Option<Size>,
    /// Its scale.
    pub scale: Option<Scale>,
    /// Its place.
    pub position: Option<Position>,
}

/// Asks something of the guest's screens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Display {
    /// What.
    pub ask: Ask,
}

/// What is asked. A variant's place is its number on the wire: new ones go to the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// How they are.
    State,
    /// That they become so, and then how they are.
    Set(Vec<Want>),
    /// That this screen (all where it is empty) follow the VM's display again, and then how they are.
    Follow(String),
}

/// Why a request is refused before anybody acts. The host is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Too many screens.
    #[error("The request names {count} screens, at most {OUTPUTS} may be")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// A name that no screen has.
    #[error("A screen's name of {len} bytes is not at most {OUTPUT_NAME} of printable ASCII")]
    Name {
        /// Its bytes.
        len: usize,
    },
    /// A size that no screen can have.
    #[error("No screen can have the size {size}")]
    Size {
        /// The size.
        size: Size,
    },
    /// A scale that no screen can have.
    #[error("No screen can have the scale {scale}")]
    Scale {
        /// The scale.
        scale: Scale,
    },
}

impl Display {
    /// Holds the request against its limits.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn check(&self) -> Result<(), AskError> {
        let name = |name: &str| match name.len() {
            len if len > OUTPUT_NAME || !name.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Err(AskError::Name { len })
            }
            _ => Ok(()),
        };
        match &self.ask {
            Ask::State => Ok(()),
            Ask::Follow(output) => name(output),
            Ask::Set(wants) if wants.len() > OUTPUTS => Err(AskError::TooMany { count: wants.len() }),
            Ask::Set(wants) => wants.iter().try_for_each(|want| {
                name(&want.output)?;
                if let Some(size) = want.size.filter(|size| !size.is_sane()) {
                    return Err(AskError::Size { size });
                }
                match want.scale.filter(|scale| !scale.is_sane()) {
                    Some(scale) => Err(AskError::Scale { scale }),
                    None => Ok(()),
                }
            }),
        }
    }
}

open_enum! {
    /// What a screen's size is ruled by.
    pub struct Rule(u8) {
        /// It follows the VM's display.
        FOLLOWS = 0,
        /// The guest's user chose it.
        USER = 1,
        /// The host asked for it.
        HOST = 2,
    }
}

/// How the screens are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Whose desktop it is.
    pub user: String,
    /// How its screens are reached, in a word: `sway`, `wlr-output-management` … Empty where they are not.
    pub back_end: String,
    /// Why it is that one, or why there is none, for people.
    pub why: String,
    /// The screens, by name.
    pub outputs: Vec<Output>,
}

/// One screen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its size now; none where it is off.
    pub size: Option<Size>,
    /// Pictures in a thousand seconds.
    pub refresh: u32,
    /// Its scale now.
    pub scale: Scale,
    /// Its place now.
    pub position: Position,
    /// What the VM's display offers, where it says so.
    pub offered: Option<Size>,
    /// What its size is ruled by.
    pub rule: Rule,
    /// Why it is not as it should be.
    pub problem: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_shown() {
        for text in ["320x200", "1733x911", "7680x4320", "8192x4096"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        for text in ["0.5", "1", "1.25", "1.333", "8"] {
            assert_eq!(text.parse::<Scale>().unwrap().to_string(), text);
        }
        assert_eq!("-5,1080".parse::<Position>().unwrap(), Position { x: -5, y: 1080 });
        for text in ["", "x", "1x1", "8192x4320", "+640x480", "640x480x2", "9000x200", "99999999999x1"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        for text in ["", ".", "0.4", "8.001", "1.2345", "-1", "2e0", "1.+5"] {
            assert!(text.parse::<Scale>().is_err(), "{text}");
        }
        assert!("1".parse::<Position>().is_err());
    }

    #[test]
    fn what_is_too_large_shrinks_and_keeps_its_shape() {
        let clamped = |width, height| Size { width, height }.clamped();
        assert_eq!(clamped(1, 1), Size::LEAST);
        assert_eq!(clamped(1733, 911), Size { width: 1733, height: 911 });
        assert_eq!(clamped(u32::MAX, 300), Size { width: 8192, height: 300 });
        for (width, height) in [(8192, 4320), (8192, 8192), (4320, 8192), (u32::MAX, u32::MAX), (5000, 8000)]
        {
            let got = clamped(width, height);
            assert!(got.is_sane() && u64::from(got.width) * u64::from(got.height) > 33_000_000, "{got}");
            let (width, height) = (u64::from(width.min(8192)), u64::from(height.min(8192)));
            let skew = (u64::from(got.width) * height).abs_diff(u64::from(got.height) * width);
            assert!(skew < 2 * 8192, "{got} of {width}x{height}");
        }
    }

    #[test]
    fn a_request_past_its_limits_is_refused() {
        let set = |want: Want| Display { ask: Ask::Set(vec![want]) }.check();
        let size = Some(Size { width: 1, height: 1 });
        assert_eq!(set(Want::default()), Ok(()));
        assert!(matches!(set(Want { size, ..Want::default() }), Err(AskError::Size { .. })));
        assert!(matches!(
            set(Want { scale: Some(Scale(1)), ..Want::default() }),
            Err(AskError::Scale { .. })
        ));
        let output = "a\nb".to_owned();
        assert!(matches!(set(Want { output, ..Want::default() }), Err(AskError::Name { .. })));
        let many = Display { ask: Ask::Set(vec![Want::default(); OUTPUTS + 1]) };
        assert!(matches!(many.check(), Err(AskError::TooMany { .. })));
        assert!(Display { ask: Ask::Follow("x".repeat(OUTPUT_NAME + 1)) }.check().is_err());
    }
}
