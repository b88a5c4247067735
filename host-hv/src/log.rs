//! The log, which a guest must not be able to fill: what it does wrong is told, and it may do it a million times.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

/// So many warnings of one kind are told whole; of more, each whose number is a power of two.
const WHOLE: u64 = 64;

/// Lets all through but warnings and errors that come again and again.
#[derive(Debug, Default)]
pub(crate) struct Dam(Mutex<HashMap<Identifier, u64>>);

impl Dam {
    fn passes(&self, kind: Identifier) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(kind).or_default();
        *count += 1;
        *count <= WHOLE || count.is_power_of_two()
    }
}

impl<S: Subscriber> Filter<S> for Dam {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        *metadata.level() > Level::WARN || self.passes(metadata.callsite())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::{Layer, Registry};

    use super::*;

    struct Lines(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for Lines {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_million_warnings_are_a_few_lines_and_what_is_asked_for_is_told() {
        let lines = Arc::new(AtomicUsize::new(0));
        let count = || lines.swap(0, Ordering::Relaxed);
        let log = Registry::default().with(Lines(lines.clone()).with_filter(Dam::default()));
        tracing::subscriber::with_default(log, || {
            for at in 0..1_000_000 {
                tracing::warn!(at, "The guest did it again");
            }
            assert_eq!(count(), 64 + 13);
            tracing::warn!("Something else");
            assert_eq!(count(), 1);
            for _ in 0..1000 {
                tracing::info!("Shared");
            }
            assert_eq!(count(), 1000);
        });
    }
}
