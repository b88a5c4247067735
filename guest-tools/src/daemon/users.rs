//! Which user a request means.

use std::path::Path;

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::limits::USER_NAME;
use nix::unistd::User;

use crate::atomic_file;
use crate::config::Users;

/// Bytes of `/etc/passwd` that are looked at for human users.
const PASSWD: u64 = 1024 * 1024;
/// `login.defs(5)`, where the file says nothing.
const UID_RANGE: (u32, u32) = (1000, 60_000);

/// A user of this guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Name.
    pub name: String,
    /// User id.
    pub uid: u32,
}

/// The user that a request names, or the only human user where it names none; and only where the policy allows.
///
/// # Errors
/// `NO_USER`, `WHICH_USER`, `FORBIDDEN`, with what to do about it.
pub async fn resolve(named: &str, policy: &Users) -> Result<Account, WireError> {
    let account = if named.is_empty() { only_human(policy)? } else { by_name(named).await? };
    if policy.allows(&account.name, account.uid) {
        return Ok(account);
    }
    let hint = if account.uid == 0 {
        "root is switched off in the guest's /etc/hospes/tools.toml ([users] root)".to_owned()
    } else {
        format!("The guest's /etc/hospes/tools.toml ([users] allow) has: {}", policy.allow.join(", "))
    };
    let message = format!("The guest's policy does not allow the user {}", account.name);
    Err(WireError::new(ErrorKind::FORBIDDEN, message).hint(hint))
}

/// By name: from the local file, else from wherever else the guest's users come (NSS), which may ask the network and
/// therefore happens on another thread.
async fn by_name(name: &str) -> Result<Account, WireError> {
    let unknown = || {
        let name = crate::audit::printable(name.as_bytes());
        WireError::new(ErrorKind::NO_USER, format!("The guest has no user \"{name}\""))
    };
    if name.len() > USER_NAME || name.contains(['\0', ':', '\n']) {
        return Err(unknown());
    }
    if let Some(account) = local(&read("/etc/passwd"), name) {
        return Ok(account);
    }
    let asked = name.to_owned();
    let found = match tokio::task::spawn_blocking(move || User::from_name(&asked)).await {
        Ok(found) => found,
        Err(error) => return Err(WireError::new(ErrorKind::OTHER, error)),
    };
    match found {
        Ok(Some(user)) => Ok(Account { name: user.name, uid: user.uid.as_raw() }),
        Ok(None) => Err(unknown().hint(human_hint(&humans()))),
        Err(error) => Err(WireError::new(
            ErrorKind::OS,
            format!("The user {name} could not be looked up: {}", error.desc()),
        )),
    }
}

/// Whether this guest knows the name, from wherever its users come. It may ask the network.
#[must_use]
pub fn exists(name: &str) -> bool {
    local(&read("/etc/passwd"), name).is_some() || matches!(User::from_name(name), Ok(Some(_)))
}

fn local(passwd: &str, name: &str) -> Option<Account> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    Some(Account { name: name.into(), uid: line.split(':').nth(2)?.parse().ok()? })
}

fn read(path: &str) -> String {
    atomic_file::read_text(Path::new(path), PASSWD).ok().flatten().unwrap_or_default()
}

fn only_human(policy: &Users) -> Result<Account, WireError> {
    let mut humans = humans();
    humans.retain(|account| policy.allows(&account.name, account.uid));
    match humans.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(WireError::new(ErrorKind::NO_USER, "The guest has no human user who is allowed")
            .hint("Name one with --user (root, where the guest's policy allows it)")),
        several => {
            Err(WireError::new(ErrorKind::WHICH_USER, "The guest has several users, and none was named")
                .hint(human_hint(several)))
        }
    }
}

fn human_hint(humans: &[Account]) -> String {
    if humans.is_empty() {
        return "The guest has no human users".into();
    }
    let names: Vec<&str> = humans.iter().take(50).map(|account| account.name.as_str()).collect();
    format!("Name one with --user: {}", names.join(", "))
}

/// The local users who are people: an id in login.defs' range and a shell to log in with. Users from elsewhere (LDAP)
/// are found by name and not listed: nobody wants the whole company here.
#[must_use]
pub fn humans() -> Vec<Account> {
    humans_in(&read("/etc/passwd"), &read("/etc/login.defs"))
}

fn humans_in(passwd: &str, login_defs: &str) -> Vec<Account> {
    let (lowest, highest) = uid_range(login_defs);
    let mut humans: Vec<Account> = passwd
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with(['#', '+', '-']))?;
            let uid: u32 = fields.nth(1)?.parse().ok()?;
            let shell = fields.nth(3)?;
            let can_log_in =
                !matches!(shell.rsplit('/').next(), Some("nologin" | "false" | "sync" | "halt" | "shutdown"));
            let human = can_log_in && (lowest..=highest).contains(&uid);
            human.then(|| Account { name: name.into(), uid })
        })
        .collect();
    // Two names of one id are one person: the first counts, as in getpwuid(3).
    humans.sort_by_key(|account| account.uid);
    humans.dedup_by_key(|account| account.uid);
    humans
}

fn uid_range(login_defs: &str) -> (u32, u32) {
    let value = |key: &str| {
        login_defs.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(key)).then(|| words.next()?.parse().ok()).flatten()
        })
    };
    (value("UID_MIN").unwrap_or(UID_RANGE.0), value("UID_MAX").unwrap_or(UID_RANGE.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
        nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n\
        ada:x:1000:1000:Ada,,,:/home/ada:/bin/bash\n\
        ada2:x:1000:1000::/home/ada:/bin/bash\n\
        build:x:1002:1002::/srv/build:/usr/sbin/nologin\n\
        broken:x:what\n\
        eve:x:1001:1001::/home/eve:/usr/bin/fish\n";

    fn names(passwd: &str, defs: &str) -> Vec<String> {
        humans_in(passwd, defs).into_iter().map(|account| account.name).collect()
    }

    #[test]
    fn people_have_an_id_in_range_and_a_shell() {
        assert_eq!(names(PASSWD, ""), ["ada", "eve"]);
        assert_eq!(names(PASSWD, "# UID_MIN 0\nUID_MIN\t\t 1001\nUID_MAX 60000\n"), ["eve"]);
        assert_eq!(names("", ""), Vec::<String>::new());
    }

    #[tokio::test]
    async fn root_is_refused_unless_the_policy_allows_it_and_the_hint_says_where() {
        let no_root = Users { allow: vec!["*".into()], root: false };
        let error = resolve("root", &no_root).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::FORBIDDEN);
        assert!(error.hint.contains("tools.toml"));
        assert_eq!(resolve("root", &Users { root: true, ..no_root }).await.unwrap().uid, 0);
    }

    #[tokio::test]
    async fn an_unknown_user_is_refused_by_name_without_its_escapes() {
        let error = resolve("no\x1bbody-of-that-name", &Users::default()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NO_USER);
        assert!(error.message.contains("\"no\\u{1b}body-of-that-name\""), "{}", error.message);
    }
}
