//! What text is called and how it is encoded in X11 (ICCCM 2.6.2): `STRING` is Latin-1 there, and UTF-8 wherever else a
//! program says so. What crosses is UTF-8.

use x11rb::protocol::xproto::Atom;

use super::Targets;

/// How a program encodes what it gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// As it crosses.
    Same,
    /// Latin-1, which crosses as UTF-8.
    Latin1,
}

/// UTF-8 text, as it is called where only another encoding is to be had.
const UTF8: &str = "text/plain;charset=utf-8";
/// Text in encodings of X11's own.
const LEGACY: [&str; 4] = ["STRING", "TEXT", "COMPOUND_TEXT", "C_STRING"];
/// Numbers of things on the server, which mean nothing elsewhere.
const LOCAL: [&str; 4] = ["PIXMAP", "BITMAP", "DRAWABLE", "COLORMAP"];

/// What an owner's targets are to others.
pub(super) fn from_targets(offered: Vec<(String, Atom)>) -> Targets {
    let utf8 = |name: &str| name == "UTF8_STRING" || name.eq_ignore_ascii_case(UTF8);
    let has_utf8 = offered.iter().any(|(name, _)| utf8(name));
    let mut targets = Targets::new();
    for (name, atom) in offered {
        if LOCAL.contains(&name.as_str()) {
            continue;
        }
        if !LEGACY.contains(&name.as_str()) {
            targets.push((name, atom, Encoding::Same));
        } else if name == "STRING" && !has_utf8 {
            targets.push((UTF8.to_owned(), atom, Encoding::Latin1));
        }
    }
    targets
}

/// Latin-1 as UTF-8.
pub(super) fn to_utf8(latin1: &[u8]) -> Vec<u8> {
    latin1.iter().map(|byte| char::from(*byte)).collect::<String>().into_bytes()
}

/// UTF-8 as Latin-1, in pieces: what the last one ended within is kept for the next.
#[derive(Debug, Default)]
pub(super) struct ToLatin1 {
    cut: Vec<u8>,
}

impl ToLatin1 {
    /// The next piece. What Latin-1 has no letter for is a question mark.
    pub(super) fn next(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.cut);
        all.extend_from_slice(bytes);
        let mut out = Vec::with_capacity(all.len());
        let mut rest = &all[..];
        loop {
            let (good, after) = match std::str::from_utf8(rest) {
                Ok(good) => (good, None),
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    (std::str::from_utf8(good).unwrap_or_default(), Some((bad, error.error_len())))
                }
            };
            out.extend(good.chars().map(|letter| u8::try_from(u32::from(letter)).unwrap_or(b'?')));
            match after {
                None => return out,
                Some((bad, Some(len))) => {
                    out.push(b'?');
                    rest = &bad[len..];
                }
                Some((bad, None)) => {
                    self.cut = bad.to_vec();
                    return out;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(names: &[&str]) -> Vec<(String, Atom)> {
        names.iter().zip(1..).map(|(name, atom)| ((*name).to_owned(), atom)).collect()
    }

    #[test]
    fn what_crosses_is_utf8_whatever_the_owner_has() {
        let names = |targets: Targets| targets.into_iter().map(|(name, ..)| name).collect::<Vec<_>>();
        let both =
            from_targets(offered(&["TIMESTAMP", "STRING", "UTF8_STRING", "COMPOUND_TEXT", "PIXMAP", "x/y"]));
        assert_eq!(names(both), ["TIMESTAMP", "UTF8_STRING", "x/y"]);
        assert_eq!(from_targets(offered(&["STRING"])), [(UTF8.to_owned(), 1, Encoding::Latin1)]);
    }

    #[test]
    fn latin1_and_back_wherever_it_is_cut() {
        let text = "Grüße, 5 € für ÿ";
        for cut in 0..=text.len() {
            let (one, two) = text.as_bytes().split_at(cut);
            let mut to = ToLatin1::default();
            let latin1 = [to.next(one), to.next(two)].concat();
            assert_eq!(String::from_utf8(to_utf8(&latin1)).unwrap(), "Grüße, 5 ? für ÿ");
        }
        assert_eq!(ToLatin1::default().next(b"a\xff\xfeb"), b"a??b");
    }
}
