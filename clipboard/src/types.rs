//! The names of what can be pasted: which cross, and what text is called where.

use hospes_protocol::clipboard::check_type;
use hospes_protocol::limits::CLIPBOARD_TYPES;

use crate::files::list;
use crate::picture;

/// UTF-8 text's names, the best first. The programs of a desktop ask for one or the other, and one that has only
/// another shall be able to paste all the same.
const TEXT: [&str; 6] =
    ["text/plain;charset=utf-8", "text/plain;charset=UTF-8", "UTF8_STRING", "text/plain", "TEXT", "STRING"];

/// What X11's owners and requestors say to each other (ICCCM 2.6.2, 2.6.3), which is nobody's to paste.
const INTERNAL: [&str; 12] = [
    "TARGETS",
    "MULTIPLE",
    "TIMESTAMP",
    "SAVE_TARGETS",
    "DELETE",
    "INSERT_SELECTION",
    "INSERT_PROPERTY",
    "ADOBE_SELECTION",
    "HOST_NAME",
    "OWNER_OS",
    "USER",
    "CLIENT_WINDOW",
];

/// Names by which a program says that what it copied is a secret, as password managers do: on Linux desktops, on macOS.
const SECRET: [&str; 2] = ["x-kde-passwordManagerHint", "org.nspasteboard.ConcealedType"];

/// What the names of our own marks begin with: a back end knows by its mark what it shows itself.
pub const MARK: &str = "application/x-hospes-";

/// The types as they cross: what is internal to a desktop, twice there, or no name stays behind, and so does what is
/// over the limit.
#[must_use]
pub fn to_wire(types: Vec<String>) -> Vec<String> {
    let mut wire: Vec<String> = Vec::new();
    for name in types {
        let internal = INTERNAL.contains(&name.as_str()) || name.starts_with(MARK);
        let local = list::LOCAL.contains(&name.as_str());
        if !internal
            && !local
            && check_type(&name).is_ok()
            && !wire.contains(&name)
            && wire.len() < CLIPBOARD_TYPES
        {
            wire.push(name);
        }
    }
    wire
}

/// What can be made of what an owner has, besides that.
#[must_use]
pub fn to_offer(types: &[String]) -> Vec<String> {
    let mut offered = types.to_vec();
    if picture::source(types).is_some() && offered.len() < CLIPBOARD_TYPES {
        offered.push(picture::PNG.to_owned());
    }
    offered
}

/// The types as a desktop is shown them: text and lists of files under all their names.
#[must_use]
pub fn to_desktop(types: &[String]) -> Vec<String> {
    let mut shown = types.to_vec();
    let mut add = |names: &[&str]| {
        let missing = names.iter().filter(|name| !types.iter().any(|had| had == *name));
        shown.extend(missing.map(|name| (*name).to_owned()));
    };
    if types.iter().any(|name| is_text(name)) {
        add(&TEXT);
    }
    if list::best(types).is_some() {
        add(&list::TYPES);
    }
    shown
}

/// What the owner calls `kind`, which somebody asks for; `None` where it has nothing of that kind.
#[must_use]
pub fn original<'t>(kind: &str, types: &'t [String]) -> Option<&'t str> {
    let find = |wanted: &str| types.iter().find(|name| *name == wanted).map(String::as_str);
    find(kind).or_else(|| if is_text(kind) { TEXT.iter().find_map(|name| find(name)) } else { None })
}

/// As which of its types the owner is asked for `kind`, which a desktop's program asks for: lists of files are written
/// anew.
#[must_use]
pub fn owners<'t>(kind: &str, types: &'t [String]) -> Option<&'t str> {
    original(kind, types).or_else(|| match kind {
        picture::PNG => picture::source(types),
        kind if list::is_list(kind) => list::best(types),
        _ => None,
    })
}

/// Whether a program said that it is a secret.
#[must_use]
pub fn is_secret(types: &[String]) -> bool {
    types.iter().any(|name| SECRET.contains(&name.as_str()))
}

/// Whether it is one of UTF-8 text's names.
#[must_use]
pub fn is_text(name: &str) -> bool {
    TEXT.contains(&name)
}

/// The type that a person means who names none: text, else the first.
#[must_use]
pub fn best(types: &[String]) -> Option<&str> {
    original(TEXT[0], types).or_else(|| types.first().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(types: &[&str]) -> Vec<String> {
        types.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_crosses_is_only_what_somebody_could_paste() {
        let offered = [
            "application/x-kde-cutselection",
            "TARGETS",
            "text/html",
            "text/html",
            "MULTIPLE",
            "application/x-hospes-00ff",
            "a\nb",
            "x/y z",
        ];
        assert_eq!(to_wire(names(&offered)), ["text/html", "x/y z"]);
        assert_eq!(to_wire((0..500).map(|n| format!("a/{n}")).collect()).len(), CLIPBOARD_TYPES);
    }

    #[test]
    fn text_is_had_under_each_of_its_names_and_nothing_else_is_renamed() {
        let types = names(&["text/html", "STRING", "UTF8_STRING"]);
        let shown = to_desktop(&types);
        assert!(TEXT.iter().all(|name| shown.iter().filter(|had| had == name).count() == 1), "{shown:?}");
        assert_eq!(original("text/plain", &types), Some("UTF8_STRING"));
        assert_eq!(original("STRING", &types), Some("STRING"));
        assert_eq!(original("image/png", &types), None);
        assert_eq!(to_desktop(&names(&["image/png"])), ["image/png"]);
        let picture = names(&["image/jpeg", "image/bmp"]);
        assert_eq!(to_offer(&picture), ["image/jpeg", "image/bmp", "image/png"]);
        assert_eq!(owners("image/png", &picture), Some("image/bmp"));
        assert_eq!(to_offer(&names(&["image/png", "image/bmp"])), ["image/png", "image/bmp"]);
        let files = to_desktop(&names(&["x-special/gnome-copied-files"]));
        assert!(
            list::TYPES.iter().all(|name| files.iter().filter(|had| had == name).count() == 1),
            "{files:?}"
        );
        assert_eq!(owners("text/uri-list", &files[..1]), Some("x-special/gnome-copied-files"));
        assert_eq!(original("text/uri-list", &files[..1]), None);
        assert_eq!(original("text/plain", &names(&["image/png"])), None);
        assert_eq!(best(&types), Some("UTF8_STRING"));
        assert_eq!(best(&names(&["image/png", "image/bmp"])), Some("image/png"));
    }
}
