//! Hexadecimal digits, as the files of both ends have them.

/// The bytes' digits, in lower case.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes of exactly `2 * N` digits.
#[must_use]
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.trim_end().as_bytes();
    let mut bytes = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let value = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(value(pair[0])? << 4 | value(pair[1])?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_survive_and_what_is_none_is_refused() {
        assert_eq!(decode(&encode(&[0, 0x9a, 0xff])), Some([0, 0x9a, 0xff]));
        assert_eq!(decode::<2>("00f"), None);
        assert_eq!(decode::<2>("00fg"), None);
        assert_eq!(decode::<2>("00ff00"), None);
        assert_eq!(decode::<2>("A0Ff"), Some([0xa0, 0xff]));
        assert_eq!(decode::<2>("+1+2"), None);
        assert_eq!(decode::<2>("a0é"), None);
    }
}
