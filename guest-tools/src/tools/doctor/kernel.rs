//! Whether the running kernel was built with what Hospes needs: its configuration, held against the fragment that stands
//! in `kernel-patches/hospes.config`.

use std::collections::HashSet;
use std::path::PathBuf;

/// What a distribution's kernel needs, with what is missing without it.
const FRAGMENT: &str = include_str!("../../../../kernel-patches/hospes.config");

/// One option that the running kernel lacks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missing {
    /// As in the configuration: `CONFIG_VSOCKETS`.
    pub(super) option: &'static str,
    /// What does not work without it, in one sentence without its full stop.
    pub(super) effect: &'static str,
}

/// The running kernel's configuration and where it stands; none where the distribution ships no readable one.
pub(super) fn configuration() -> Option<String> {
    let name = nix::sys::utsname::uname().ok()?;
    let release = name.release().to_str()?;
    // Debian's, Fedora's, and what `make modules_install` leaves.
    let places = [
        format!("/boot/config-{release}"),
        format!("/usr/lib/modules/{release}/config"),
        format!("/lib/modules/{release}/build/.config"),
    ];
    places.iter().find_map(|place| std::fs::read_to_string(PathBuf::from(place)).ok())
}

/// What `configuration` lacks, in the fragment's order.
pub(super) fn missing(configuration: &str) -> Vec<Missing> {
    let has: HashSet<&str> = configuration
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(_, value)| matches!(*value, "y" | "m"))
        .map(|(option, _)| option)
        .collect();
    wanted().filter(|wanted| !has.contains(wanted.option)).collect()
}

/// The fragment's options, each with the comment above its block.
fn wanted() -> impl Iterator<Item = Missing> {
    let mut effect = "";
    FRAGMENT.lines().filter_map(move |line| {
        if let Some(comment) = line.strip_prefix("# ") {
            effect = comment;
        }
        let (option, _) = line.split_once('=')?;
        option.starts_with("CONFIG_").then_some(Missing { option, effect })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_the_fragment_says_what_is_missing_without_it() {
        let all: Vec<Missing> = wanted().collect();
        assert!(all.len() > 10, "{all:?}");
        for Missing { option, effect } in &all {
            assert!(effect.len() > 20 && !effect.ends_with('.'), "{option}: {effect:?}");
        }
    }

    #[test]
    fn a_kernel_that_is_the_fragment_lacks_nothing() {
        assert_eq!(missing(FRAGMENT), []);
        assert_eq!(missing(&FRAGMENT.replace("=m", "=y")), []);
    }

    #[test]
    fn what_is_off_or_not_named_is_missing_and_a_longer_name_is_not_it() {
        let kernel = FRAGMENT
            .replace("CONFIG_VIRTIO_FS=m", "# CONFIG_VIRTIO_FS is not set")
            .replace("CONFIG_VSOCKETS=m", "CONFIG_VSOCKETS_DIAG=m")
            .replace("CONFIG_DRM_VIRTIO_GPU=m", "CONFIG_DRM_VIRTIO_GPU=n");
        let options: Vec<&str> = missing(&kernel).iter().map(|missing| missing.option).collect();
        assert_eq!(options, ["CONFIG_VSOCKETS", "CONFIG_VIRTIO_FS", "CONFIG_DRM_VIRTIO_GPU"]);
    }
}
