//! Where messages go: to the journal with their fields where there is one, else to the standard error.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Subscriber};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::{Layer, Registry};

use crate::config::Level;

/// The level in force: a number, so that a message that is not written costs one load.
static LEVEL: AtomicUsize = AtomicUsize::new(2);

struct ByLevel;

impl<S: Subscriber> Filter<S> for ByLevel {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        // Audit lines are written at every level; what other crates say, as warnings only.
        let ours = metadata.target().starts_with("guest_tools") || metadata.target().starts_with("hospes");
        metadata.target() == "audit"
            || *metadata.level()
                <= if ours { filter(LEVEL.load(Ordering::Relaxed)) } else { LevelFilter::WARN }
    }
}

const fn filter(level: usize) -> LevelFilter {
    match level {
        0 => LevelFilter::ERROR,
        1 => LevelFilter::WARN,
        2 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    }
}

/// Starts logging under the program's own name. Once per process; a second call does nothing.
pub fn start() {
    let program = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    init(&program.file_name().map_or("hospes".into(), |name| name.to_string_lossy()));
}

/// Starts logging under `identifier`. Once per process; a second call does nothing.
pub fn init(identifier: &str) {
    let subscriber = Registry::default();
    let journal = stderr_is_the_journal().then(|| tracing_journald::Layer::new().ok()).flatten();
    let _ = match journal {
        Some(journal) => {
            let ordinary = PriorityMappings {
                info: Priority::Informational,
                debug: Priority::Debug,
                ..PriorityMappings::new()
            };
            let journal = journal
                .with_priority_mappings(ordinary)
                .with_syslog_identifier(identifier.to_owned())
                .with_field_prefix(Some("HOSPES".to_owned()));
            tracing::subscriber::set_global_default(subscriber.with(journal.with_filter(ByLevel)))
        }
        None => {
            let stderr =
                tracing_subscriber::fmt::layer().with_writer(io::stderr).without_time().with_ansi(false);
            tracing::subscriber::set_global_default(subscriber.with(stderr.with_filter(ByLevel)))
        }
    };
}

/// Changes the least grave level that is written.
pub fn set_level(level: Level) {
    LEVEL.store(level as usize, Ordering::Relaxed);
    tracing::callsite::rebuild_interest_cache();
}

/// systemd.exec(5): `$JOURNAL_STREAM` names the device and inode of the journal's socket. Where they are not those of
/// our own standard error, somebody redirected it and wants the lines there.
fn stderr_is_the_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    fs::metadata("/proc/self/fd/2").is_ok_and(|file| named == format!("{}:{}", file.dev(), file.ino()))
}
