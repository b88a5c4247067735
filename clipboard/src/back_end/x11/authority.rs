//! The file with a display's cookie (xauth(1), Xau's `Xauth` structure): entries of a family, and four counted strings,
//! the address, the display's number, the cookie's kind and the cookie.

/// The kind of cookie that servers of one machine take.
const KIND: &[u8] = b"MIT-MAGIC-COOKIE-1";

/// The kind and the cookie of this display. Of several the first: an entry's address is the host's name, which may have
/// been changed since.
pub(super) fn cookie(mut file: &[u8], display: u16) -> Option<(Vec<u8>, Vec<u8>)> {
    let number = display.to_string();
    loop {
        file = file.get(2..)?;
        let [_address, of, kind, cookie] =
            [field(&mut file)?, field(&mut file)?, field(&mut file)?, field(&mut file)?];
        if kind == KIND && (of.is_empty() || of == number.as_bytes()) {
            return Some((kind.to_vec(), cookie.to_vec()));
        }
    }
}

fn field<'f>(file: &mut &'f [u8]) -> Option<&'f [u8]> {
    let (len, rest) = file.split_first_chunk::<2>()?;
    let (field, rest) = rest.split_at_checked(u16::from_be_bytes(*len).into())?;
    *file = rest;
    Some(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: &[u8], kind: &[u8], cookie: &[u8]) -> Vec<u8> {
        let mut entry = vec![1, 0];
        for field in [&b"box"[..], number, kind, cookie] {
            entry.extend(u16::try_from(field.len()).unwrap().to_be_bytes());
            entry.extend(field);
        }
        entry
    }

    #[test]
    fn the_displays_own_cookie_is_found() {
        let file =
            [entry(b"1", KIND, b"one"), entry(b"2", b"XDM", b"no"), entry(b"2", KIND, b"two")].concat();
        assert_eq!(cookie(&file, 2), Some((KIND.to_vec(), b"two".to_vec())));
        assert_eq!(cookie(&file, 3), None);
        assert_eq!(cookie(&entry(b"", KIND, b"any"), 3), Some((KIND.to_vec(), b"any".to_vec())));
        for cut in 0..file.len() {
            // Whatever a file has lost, it is no panic.
            let _ = cookie(&file[..cut], 2);
        }
    }
}
