//! What is to be done about the clock.
//!
//! | who is in charge | torn (a pause, a sleep, a restore, somebody asks) | otherwise |
//! |---|---|---|
//! | nobody | set | brought there slowly; set forward where it is far behind |
//! | chrony, fed | set, and chrony told | fed: chrony keeps it |
//! | chrony unfed, timesyncd, another | set | left alone; set forward, once, where it is a second behind |
//!
//! It is never set back unless it was torn, or by the first host of a boot where nobody is in charge. Where who is in charge
//! takes back what was set, it has other news than the host's, and is left alone from then on.

use std::time::Duration;

use hospes_protocol::time::{Keeper, Occasion, Setting};

use super::{MS, SECOND};

/// Below this a torn clock is not set, whatever the exchanges' error.
const STEP: i64 = 5 * MS;
/// What is brought there slowly. The kernel does 0.5 ms in a second.
const SLEW: i64 = 100 * MS;
/// A clock that is ahead by more is not brought back slowly: that would take days.
const AHEAD: i64 = 60 * SECOND;
/// A clock behind by more was torn, though nobody said so.
const UNTOLD: i64 = SECOND;
/// From one look to the next while the clock is not yet quiet, and where chrony is fed.
const SOON: Duration = Duration::from_secs(64);
/// The longest time between two looks.
const LATE: Duration = Duration::from_secs(1024);
/// An offset within which a clock is quiet.
const QUIET: i64 = MS;
/// The kernel's limit for a correction of the frequency, in parts per billion.
const FREQUENCY: i64 = 500_000;

/// What is known at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Why the clock is looked at.
    pub occasion: Occasion,
    /// Nanoseconds that the host is ahead.
    pub offset: i64,
    /// Nanoseconds by which that may be wrong.
    pub error: u64,
    /// Who is in charge.
    pub keeper: Keeper,
    /// Whether chrony takes our samples.
    pub fed: bool,
    /// What the owner allows.
    pub setting: Setting,
    /// `CLOCK_BOOTTIME`.
    pub at: i64,
    /// The kernel's correction of the frequency, in parts per billion.
    pub frequency: i64,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Leave,
    /// Set the clock by so many nanoseconds.
    Step(i64),
    /// Bring it by so many nanoseconds, and correct the frequency.
    Slew {
        /// Nanoseconds.
        by: i64,
        /// Parts per billion, in all; none where it is right as it is.
        frequency: Option<i64>,
    },
    /// Tell chrony how far the host is ahead.
    Feed,
    /// Nothing, though it is far ahead.
    Hold,
}

/// What is remembered from one moment to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mind {
    /// The first host of this boot has been.
    settled: bool,
    /// The last look with nobody else in charge: when, with nothing set since.
    last: Option<i64>,
    /// What was set while somebody else was in charge, untold.
    untold: Option<i64>,
    /// Somebody else is in charge and sees it otherwise.
    disputed: bool,
    /// How long until the next look.
    wait: Option<Duration>,
}

impl Mind {
    /// A mind that is told whether an earlier one has looked in this boot.
    #[must_use]
    pub fn new(settled: bool) -> Self {
        Self { settled, ..Self::default() }
    }

    /// Whether a host has been in this boot.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.settled
    }

    /// How long until the clock is to be looked at again; none where only an occasion brings that.
    #[must_use]
    pub const fn wait(&self) -> Option<Duration> {
        self.wait
    }

    /// What is to be done.
    pub fn decide(&mut self, moment: &Moment) -> Act {
        if moment.occasion == Occasion::LOOK {
            return Act::Leave;
        }
        let first = !std::mem::replace(&mut self.settled, true);
        let act = match moment.setting {
            Setting::OFF => Act::Leave,
            Setting::ONCE if first || moment.occasion == Occasion::ASKED => mended(moment, Act::Leave),
            Setting::STEP_ONLY | Setting::FULL => self.act(moment, first),
            _ => Act::Leave,
        };
        self.remember(moment, act);
        act
    }

    fn act(&mut self, moment: &Moment, first: bool) -> Act {
        let full = moment.setting == Setting::FULL;
        let otherwise =
            if full && moment.keeper == Keeper::CHRONY && moment.fed { Act::Feed } else { Act::Leave };
        if moment.occasion.tears() {
            return mended(moment, otherwise);
        }
        if moment.keeper == Keeper::NONE {
            if first {
                return mended(moment, otherwise);
            }
            return match moment.offset {
                offset if offset > SLEW => Act::Step(offset),
                offset if offset < -AHEAD => Act::Hold,
                offset if full => Act::Slew { by: offset, frequency: self.frequency(moment) },
                _ => Act::Leave,
            };
        }
        if moment.offset <= UNTOLD || moment.occasion == Occasion::HOST_SET {
            return otherwise;
        }
        // What was set, and is as wrong again: who is in charge took it back.
        let taken_back = |set: i64| moment.offset.abs_diff(set) < set.unsigned_abs() / 4;
        self.disputed |= self.untold.is_some_and(taken_back);
        if self.disputed {
            return Act::Leave;
        }
        self.untold = Some(moment.offset);
        Act::Step(moment.offset)
    }

    /// The frequency that would have kept the offset from growing, half way there: a single look may be wrong.
    fn frequency(&self, moment: &Moment) -> Option<i64> {
        let since = moment.at.checked_sub(self.last?)?;
        if since < 30 * SECOND || moment.offset.unsigned_abs() <= moment.error {
            return None;
        }
        let drift = i128::from(moment.offset) * i128::from(SECOND) / i128::from(since) / 2;
        let drift = i64::try_from(drift).unwrap_or(0);
        Some(moment.frequency.saturating_add(drift).clamp(-FREQUENCY, FREQUENCY))
    }

    fn remember(&mut self, moment: &Moment, act: Act) {
        let slewing = matches!(act, Act::Slew { .. });
        self.last = slewing.then_some(moment.at);
        let kept = moment.setting == Setting::FULL && moment.keeper == Keeper::NONE;
        let fed = moment.setting == Setting::FULL && moment.keeper == Keeper::CHRONY && moment.fed;
        let quiet = slewing && moment.offset.unsigned_abs() <= QUIET.unsigned_abs().max(moment.error);
        self.wait = match self.wait {
            _ if fed && !self.disputed => Some(SOON),
            Some(wait) if kept && quiet && moment.occasion == Occasion::STEADY => Some((wait * 2).min(LATE)),
            Some(wait) if kept && quiet => Some(wait),
            _ if kept => Some(SOON),
            _ => None,
        };
    }
}

/// A torn clock is set where that is worth it.
fn mended(moment: &Moment, otherwise: Act) -> Act {
    let worth = STEP.unsigned_abs().max(moment.error.saturating_mul(2));
    if moment.offset.unsigned_abs() > worth { Act::Step(moment.offset) } else { otherwise }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn moment(occasion: Occasion, keeper: Keeper, offset: i64) -> Moment {
        let (setting, fed) = (Setting::FULL, keeper == Keeper::CHRONY);
        Moment { occasion, offset, error: 500_000, keeper, fed, setting, at: 0, frequency: 0 }
    }

    const KEEPERS: [Keeper; 4] = [Keeper::NONE, Keeper::CHRONY, Keeper::TIMESYNCD, Keeper::OTHER];
    const TORN: [Occasion; 4] =
        [Occasion::ASKED, Occasion::RESUMED, Occasion::HOST_WOKE, Occasion::GUEST_WOKE];
    const REST: [Occasion; 3] = [Occasion::OPENED, Occasion::HOST_SET, Occasion::STEADY];

    #[test]
    fn a_torn_clock_is_set_either_way_whoever_is_in_charge() {
        for keeper in KEEPERS {
            for occasion in TORN {
                for offset in [5 * SECOND, -5 * SECOND, 8 * 3600 * SECOND, 6 * MS] {
                    let act = Mind::new(true).decide(&moment(occasion, keeper, offset));
                    assert_eq!(act, Act::Step(offset), "{keeper} {occasion}");
                }
                let act = Mind::new(true).decide(&moment(occasion, keeper, 2 * MS));
                assert!(!matches!(act, Act::Step(_)), "{keeper} {occasion}: {act:?}");
            }
        }
    }

    #[test]
    fn otherwise_it_is_never_set_back() {
        for keeper in KEEPERS {
            for occasion in REST {
                for offset in [-6 * MS, -SECOND, -61 * SECOND, -8 * 3600 * SECOND] {
                    let act = Mind::new(true).decide(&moment(occasion, keeper, offset));
                    assert!(!matches!(act, Act::Step(_)), "{keeper} {occasion}: {act:?}");
                }
            }
        }
        let far = moment(Occasion::STEADY, Keeper::NONE, -8 * 3600 * SECOND);
        assert_eq!(Mind::new(true).decide(&far), Act::Hold);
    }

    #[test]
    fn the_first_host_of_a_boot_sets_it_either_way_where_nobody_is_in_charge() {
        let first = moment(Occasion::OPENED, Keeper::NONE, -7200 * SECOND);
        let mut mind = Mind::new(false);
        assert_eq!(mind.decide(&first), Act::Step(-7200 * SECOND));
        assert_eq!(mind.decide(&first), Act::Hold);
    }

    #[test]
    fn nobody_in_charge_means_slowly_and_far_behind_at_once() {
        let mut mind = Mind::new(true);
        let steady = |offset| moment(Occasion::STEADY, Keeper::NONE, offset);
        assert_eq!(mind.decide(&steady(20 * MS)), Act::Slew { by: 20 * MS, frequency: None });
        assert_eq!(mind.wait(), Some(SOON));
        // 6.4 ms in 64 s are 100 ppm: half of it is corrected.
        let later = Moment { at: 64 * SECOND, ..steady(6_400_000) };
        assert_eq!(mind.decide(&later), Act::Slew { by: 6_400_000, frequency: Some(50_000) });
        assert_eq!(mind.decide(&steady(101 * MS)), Act::Step(101 * MS));
        assert_eq!(mind.decide(&steady(-30 * SECOND)), Act::Slew { by: -30 * SECOND, frequency: None });
    }

    #[test]
    fn a_quiet_clock_is_looked_at_ever_more_seldom_and_never_more_than_once_a_minute() {
        let mut mind = Mind::new(true);
        let mut waits = Vec::new();
        for _ in 0..8 {
            mind.decide(&moment(Occasion::STEADY, Keeper::NONE, 1000));
            waits.push(mind.wait().unwrap().as_secs());
        }
        assert_eq!(waits, [64, 128, 256, 512, 1024, 1024, 1024, 1024]);
        mind.decide(&moment(Occasion::STEADY, Keeper::NONE, 20 * MS));
        assert_eq!(mind.wait(), Some(SOON));
    }

    #[test]
    fn chrony_is_fed_and_others_are_left_alone() {
        let mut mind = Mind::new(true);
        assert_eq!(mind.decide(&moment(Occasion::STEADY, Keeper::CHRONY, 20 * MS)), Act::Feed);
        assert_eq!(mind.wait(), Some(SOON));
        let unfed = Moment { fed: false, ..moment(Occasion::OPENED, Keeper::CHRONY, 20 * MS) };
        assert_eq!(mind.decide(&unfed), Act::Leave);
        assert_eq!(mind.wait(), None);
        assert_eq!(mind.decide(&moment(Occasion::OPENED, Keeper::TIMESYNCD, 500 * MS)), Act::Leave);
        assert_eq!(mind.wait(), None);
    }

    #[test]
    fn who_is_in_charge_and_disagrees_has_the_last_word() {
        let mut mind = Mind::new(true);
        let opened = moment(Occasion::OPENED, Keeper::TIMESYNCD, 3 * SECOND);
        // A restore of which nobody told.
        assert_eq!(mind.decide(&opened), Act::Step(3 * SECOND));
        assert_eq!(mind.decide(&Moment { offset: 3 * SECOND + 100 * MS, ..opened }), Act::Leave);
        assert_eq!(mind.decide(&Moment { offset: 40 * SECOND, ..opened }), Act::Leave);
        let host_set = moment(Occasion::HOST_SET, Keeper::TIMESYNCD, 3600 * SECOND);
        assert_eq!(Mind::new(true).decide(&host_set), Act::Leave);
    }

    #[test]
    fn the_owners_settings_bound_it() {
        let with = |setting, occasion, offset| Moment { setting, ..moment(occasion, Keeper::NONE, offset) };
        for occasion in TORN.into_iter().chain(REST) {
            assert_eq!(Mind::new(false).decide(&with(Setting::OFF, occasion, 9 * SECOND)), Act::Leave);
            assert_eq!(Mind::new(true).decide(&with(Setting(77), occasion, 9 * SECOND)), Act::Leave);
        }
        let mut once = Mind::new(false);
        assert_eq!(once.decide(&with(Setting::ONCE, Occasion::OPENED, 9 * SECOND)), Act::Step(9 * SECOND));
        assert_eq!(once.decide(&with(Setting::ONCE, Occasion::RESUMED, 9 * SECOND)), Act::Leave);
        assert_eq!(once.decide(&with(Setting::ONCE, Occasion::ASKED, 9 * SECOND)), Act::Step(9 * SECOND));
        let mut steps = Mind::new(true);
        assert_eq!(steps.decide(&with(Setting::STEP_ONLY, Occasion::STEADY, 20 * MS)), Act::Leave);
        assert_eq!(steps.wait(), None);
        assert_eq!(steps.decide(&with(Setting::STEP_ONLY, Occasion::RESUMED, SECOND)), Act::Step(SECOND));
        // To look changes nothing, not even that the first host is still to come.
        let mut look = Mind::new(false);
        assert_eq!(look.decide(&with(Setting::FULL, Occasion::LOOK, SECOND)), Act::Leave);
        assert!(!look.is_settled());
    }

    proptest! {
        #[test]
        fn whatever_happens_nothing_is_set_back_without_a_tear(
            moments in proptest::collection::vec((0u8..8, 0u8..4, any::<i64>(), any::<u64>(), 0u8..4, any::<i64>()), 1..30),
        ) {
            let mut mind = Mind::new(true);
            for (occasion, keeper, offset, error, setting, at) in moments {
                let moment = Moment {
                    occasion: Occasion(occasion),
                    keeper: Keeper(keeper),
                    offset,
                    error,
                    fed: keeper == 1,
                    setting: Setting(setting),
                    at,
                    frequency: 0,
                };
                if let Act::Step(by) = mind.decide(&moment) {
                    prop_assert!(by > 0 || moment.occasion.tears());
                }
                prop_assert!(mind.wait().is_none_or(|wait| wait >= SOON));
            }
        }
    }
}
