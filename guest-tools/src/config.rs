//! The guest owner's policy, `/etc/hospes/tools.toml`: what a trusted host may do here.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hospes_protocol::limits::{FREEZE_MS, HANDSHAKES, SESSIONS};
use hospes_protocol::time::Setting;
use hospes_protocol::version::Capabilities;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::atomic_file;
use crate::paths::Paths;
use crate::qga::Group;
use crate::verb::Verb;

/// Bytes that a policy file may have. Ours has three thousand, comments and all.
const FILE: u64 = 256 * 1024;

/// The policy. Every part may be left out and then has the value that [`Default`] gives.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which verbs are allowed.
    pub verbs: Verbs,
    /// For which users.
    pub users: Users,
    /// Which hosts are trusted.
    pub trust: Trust,
    /// Whether the guest says to the host that it is there.
    pub announce: Announce,
    /// What is logged.
    pub log: Log,
    /// How much at once.
    pub limits: Limits,
    /// What happens around a shutdown.
    pub power: Power,
    /// How long file systems may be frozen.
    pub freeze: Freeze,
    /// What is done about the clock.
    pub time: Time,
    /// The QEMU guest agent's protocol.
    pub qga: Qga,
    /// Which way the clipboard is shared.
    pub clipboard: Clipboard,
}

/// A switch for each verb; all are on unless the file says otherwise.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Verbs([bool; Verb::ALL.len()]);

/// For whom a host may act.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Users {
    /// User names, or `*` for every user but root.
    pub allow: Vec<String>,
    /// Whether root is allowed, when a request asks for it by name.
    pub root: bool,
}

/// Which hosts are trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trust {
    /// What happens while no host is trusted yet.
    pub mode: TrustMode,
}

/// What happens while no host is trusted yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrustMode {
    /// The first host that proves a key is remembered, and no other is trusted from then on.
    #[default]
    FirstUse,
    /// Nobody is trusted whose key was not put here by file or credential.
    Pinned,
}

/// Whether the guest says to the host that it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Announce {
    /// One attempt when the daemon starts.
    pub enabled: bool,
}

/// What is logged. Audit lines are always written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The least grave message that is written.
    pub level: Level,
}

/// How grave a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Failures.
    Error,
    /// And what an administrator should look at.
    Warning,
    /// And what happened.
    #[default]
    Info,
    /// And each step of it.
    Debug,
}

/// How much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Hosts' control sessions, at most [`SESSIONS`].
    pub sessions: usize,
    /// Connections that have not yet said what they are, at most [`HANDSHAKES`].
    pub handshakes: usize,
}

/// What happens around a shutdown, a suspend and a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Power {
    /// Seconds that each script may take, 1 to 3600.
    pub script_timeout: usize,
}

/// How long file systems may be frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Freeze {
    /// Seconds, 1 to 600.
    pub longest: usize,
}

impl Freeze {
    /// The longest time for which a host may ask.
    #[must_use]
    pub const fn longest(self) -> Duration {
        Duration::from_secs(self.longest as u64)
    }
}

impl Default for Freeze {
    fn default() -> Self {
        Self { longest: 60 }
    }
}

/// What the doors of the QEMU guest agent's protocol let through, where its own program is not installed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Qga {
    /// On vsock port 1234; closed where it is empty.
    pub vsock: Vec<Group>,
    /// On the port of virtio-serial; closed where it is empty.
    pub serial: Vec<Group>,
}

impl Default for Qga {
    fn default() -> Self {
        Self { vsock: vec![Group::Read, Group::Time], serial: Vec::new() }
    }
}

/// What is done about the clock, where the verb is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Time {
    /// How much of it.
    pub mode: TimeMode,
}

/// How much is done about the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeMode {
    /// Nothing.
    Off,
    /// It is set once in a boot, and when a host asks.
    Once,
    /// What a pause, a sleep or a restore tore is mended.
    StepOnly,
    /// And where no time service runs, it is kept right; chrony is fed.
    #[default]
    Full,
}

impl TimeMode {
    /// As the wire has it.
    #[must_use]
    pub const fn setting(self) -> Setting {
        match self {
            Self::Off => Setting::OFF,
            Self::Once => Setting::ONCE,
            Self::StepOnly => Setting::STEP_ONLY,
            Self::Full => Setting::FULL,
        }
    }
}

/// Which way the clipboard is shared, where the verb is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Clipboard {
    /// What is copied on the host can be pasted here.
    pub to_guest: bool,
    /// What is copied here can be pasted on the host.
    pub to_host: bool,
}

impl Default for Clipboard {
    fn default() -> Self {
        Self { to_guest: true, to_host: true }
    }
}

impl Power {
    /// The time that each script may take.
    #[must_use]
    pub const fn timeout(self) -> Duration {
        Duration::from_secs(self.script_timeout as u64)
    }
}

impl Default for Power {
    fn default() -> Self {
        Self { script_timeout: 60 }
    }
}

impl Default for Verbs {
    fn default() -> Self {
        Self([true; Verb::ALL.len()])
    }
}

impl Default for Users {
    fn default() -> Self {
        Self { allow: vec!["*".into()], root: true }
    }
}

impl Default for Announce {
    fn default() -> Self {
        Self { enabled: true }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { sessions: SESSIONS, handshakes: HANDSHAKES }
    }
}

/// Why a policy file is not taken. The old policy stays.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It says something that it may not say.
    #[error("{}:{line}: {message}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there, and what is allowed.
        message: String,
    },
    /// A number is out of its range.
    #[error("{}: {key} is {value}, it must be from 1 to {max}", path.display())]
    Range {
        /// The file.
        path: PathBuf,
        /// Which number.
        key: &'static str,
        /// What it is.
        value: usize,
        /// What it may be at most.
        max: usize,
    },
}

impl Config {
    /// The policy in force, and where it comes from: the credential where one was given, else the file, else what is
    /// built in.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(paths: &Paths) -> Result<(Self, Option<PathBuf>), ConfigError> {
        let path = paths.config_credential().unwrap_or_else(|| paths.config());
        let text = atomic_file::read_text(&path, FILE)
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        match text {
            Some(text) => Ok((Self::parse(&text, &path)?, Some(path))),
            None => Ok((Self::default(), None)),
        }
    }

    /// Reads a policy. `path` is for the error alone.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Line {
            path: path.into(),
            line: line_of(text, error.span().map_or(0, |span| span.start)),
            message: error.message().replace('\n', ", "),
        })?;
        let ranges = [
            ("limits.sessions", config.limits.sessions, SESSIONS),
            ("limits.handshakes", config.limits.handshakes, HANDSHAKES),
            ("power.script-timeout", config.power.script_timeout, 3600),
            ("freeze.longest", config.freeze.longest, (FREEZE_MS / 1000) as usize),
        ];
        match ranges.into_iter().find(|(_, value, max)| !(1..=*max).contains(value)) {
            Some((key, value, max)) => Err(ConfigError::Range { path: path.into(), key, value, max }),
            None => Ok(config),
        }
    }

    /// The policy of a guest whose policy cannot be read: nothing is allowed, and nobody becomes trusted.
    #[must_use]
    pub fn forbidding() -> Self {
        Self {
            verbs: Verbs([false; Verb::ALL.len()]),
            users: Users { allow: Vec::new(), root: false },
            trust: Trust { mode: TrustMode::Pinned },
            qga: Qga { vsock: Vec::new(), serial: Vec::new() },
            ..Self::default()
        }
    }

    /// What the policy lets a host see and do.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        Verb::ALL
            .iter()
            .filter(|verb| self.verbs.allows(**verb))
            .fold(Capabilities::default(), |all, verb| all.with(verb.capability()))
    }
}

impl Verbs {
    /// Whether a verb is allowed.
    #[must_use]
    pub fn allows(&self, verb: Verb) -> bool {
        self.0[verb as usize]
    }

    /// Switches a verb.
    pub fn set(&mut self, verb: Verb, allowed: bool) {
        self.0[verb as usize] = allowed;
    }
}

impl Users {
    /// Whether a host may act as this user.
    #[must_use]
    pub fn allows(&self, name: &str, uid: u32) -> bool {
        if uid == 0 { self.root } else { self.allow.iter().any(|allowed| allowed == "*" || allowed == name) }
    }
}

impl fmt::Debug for Verbs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(Verb::ALL.iter().map(|verb| (verb.name(), self.allows(*verb)))).finish()
    }
}

impl Serialize for Verbs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(Verb::ALL.iter().map(|verb| (verb.name(), self.allows(*verb))))
    }
}

impl<'de> Deserialize<'de> for Verbs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Switches;
        impl<'de> Visitor<'de> for Switches {
            type Value = Verbs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of verbs, each true or false")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Verbs, A::Error> {
                let mut verbs = Verbs::default();
                while let Some(VerbKey(verb)) = map.next_key()? {
                    verbs.set(verb, map.next_value()?);
                }
                Ok(verbs)
            }
        }
        deserializer.deserialize_map(Switches)
    }
}

struct VerbKey(Verb);

impl<'de> Deserialize<'de> for VerbKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Verb::by_name(&name).map(Self).ok_or_else(|| D::Error::unknown_field(&name, Verb::NAMES))
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("tools.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_installed_file_says_what_is_built_in() {
        let installed = include_str!("../../packaging/dist/hospes-tools/etc/hospes/tools.toml");
        assert_eq!(parse(installed).unwrap(), Config::default());
        // And with every comment sign of a setting taken away it says the same: the examples are the defaults.
        let spoken: String =
            installed.lines().map(|line| line.strip_prefix("#=").unwrap_or(line).to_owned() + "\n").collect();
        assert_ne!(spoken, installed);
        assert_eq!(parse(&spoken).unwrap(), Config::default());
        for verb in Verb::NAMES {
            assert!(spoken.contains(&format!("\n{verb} = true")), "{verb} is not in the file");
        }
    }

    #[test]
    fn an_error_names_the_line_the_key_and_what_is_allowed() {
        let error = parse("[users]\nroot = true\n\n[verbs]\nexce = true\n").unwrap_err();
        assert!(error.starts_with("tools.toml:5: unknown field `exce`"), "{error}");
        assert!(error.contains("`exec`") && error.contains("`kill`"), "{error}");
        let error = parse("[trust]\nmode = \"any\"\n").unwrap_err();
        assert!(error.starts_with("tools.toml:2:") && error.contains("`first-use`"), "{error}");
        assert!(parse("[userz]\n").unwrap_err().contains("tools.toml:1: unknown field `userz`"));
        assert_eq!(
            parse("[limits]\nsessions = 0\n").unwrap_err(),
            "tools.toml: limits.sessions is 0, it must be from 1 to 64"
        );
    }

    #[test]
    fn a_verb_switched_off_takes_its_capability_with_the_last_of_its_kind() {
        let config = parse("[verbs]\nexec = false\n").unwrap();
        assert!(!config.verbs.allows(Verb::Exec) && config.verbs.allows(Verb::Ps));
        assert!(config.capabilities().has(Capabilities::EXEC));
        let config = parse("[verbs]\nexec = false\nattach = false\nps = false\nkill = false\n").unwrap();
        assert!(!config.capabilities().has(Capabilities::EXEC));
        assert!(config.capabilities().has(Capabilities::INFO));
    }

    #[test]
    fn the_star_is_everybody_but_root() {
        let users = Users { allow: vec!["*".into()], root: false };
        assert!(users.allows("ada", 1000) && !users.allows("root", 0));
        let users = Users { allow: vec!["ada".into(), "root".into()], root: false };
        assert!(users.allows("ada", 1000) && !users.allows("eve", 1001) && !users.allows("root", 0));
        assert!(Users { allow: Vec::new(), root: true }.allows("toor", 0));
    }
}
