//! A hostile display, compositor and host, with what is decided between them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use guest_desktop::display::edid::Best;
use guest_desktop::display::follow::{Action, Follow};
use guest_desktop::display::layout::{Goal, Manners, Mode, Output, Way};
use hospes_protocol::display::{Position, Scale, Size, Want};

const NAMES: [&str; 4] = ["A", "B", "C", ""];
const WAYS: [&[Way]; 3] = [&[Way::Listed], &[Way::Custom], &[Way::Listed, Way::Custom]];
/// So often a compositor is asked at most before all is at rest, whatever it answers.
const ROUNDS: usize = 200;

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Small ones, great ones, and any.
    fn number(&mut self) -> u32 {
        match self.byte() {
            0 => 0,
            1 => u32::MAX,
            2 => i32::MAX.unsigned_abs(),
            kind if kind < 128 => u32::from(self.byte()) * 64,
            _ => u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()]),
        }
    }

    fn int(&mut self) -> i32 {
        self.number().cast_signed()
    }

    fn size(&mut self) -> Size {
        Size { width: self.number(), height: self.number() }
    }

    fn name(&mut self) -> String {
        NAMES[usize::from(self.byte()) % NAMES.len()].to_owned()
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (!self.byte().is_multiple_of(3)).then(|| make(self))
    }

    fn many<T>(&mut self, most: u8, make: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..self.byte() % (most + 1)).map(|_| make(self)).collect()
    }

    fn output(&mut self) -> Output {
        Output {
            name: self.name(),
            size: self.maybe(Self::size),
            refresh: self.number(),
            scale: Scale(self.number()),
            position: Position { x: self.int(), y: self.int() },
            turned: self.byte() & 1 != 0,
            modes: self.many(3, |input| Mode {
                size: input.size(),
                refresh: input.number(),
                preferred: input.byte() & 1 != 0,
                scales: input.many(2, |input| Scale(input.number())),
            }),
        }
    }

    fn want(&mut self) -> Want {
        Want {
            output: self.name(),
            size: self.maybe(|input| input.size().clamped()),
            scale: self.maybe(|input| Scale(input.number())),
            position: self.maybe(|input| Position { x: input.int(), y: input.int() }),
        }
    }
}

/// Moves of all three, a byte each and what belongs to it.
pub fn follow(data: &[u8]) {
    let mut input = Input(data);
    let mut follow = Follow::default();
    let mut now = Instant::now();
    let mut asked = None;
    while !input.0.is_empty() {
        now += Duration::from_millis(u64::from(input.byte()) * 40);
        let action = match input.byte() % 9 {
            0 => {
                let ways = WAYS[usize::from(input.byte()) % WAYS.len()];
                let patience = Duration::from_secs(u64::from(input.byte() % 7));
                follow.came(Manners { ways, patience, scales: input.byte() & 1 != 0 });
                asked = None;
                None
            }
            1 => {
                follow.gone();
                asked = None;
                None
            }
            2 | 3 => {
                let offered = input
                    .many(3, |input| (input.name(), Best { size: input.size(), refresh: input.number() }));
                follow.offered(now, offered.into_iter().collect::<BTreeMap<_, _>>())
            }
            4 | 5 => {
                let outputs = input.many(4, Input::output);
                follow.seen(now, outputs)
            }
            6 => {
                let wants = input.many(3, Input::want);
                follow.want(now, &wants).ok().flatten()
            }
            7 => {
                let name = input.name();
                follow.follow(now, &name).ok().flatten()
            }
            _ => follow.woke(now),
        };
        // The rim answers each action before anything else happens: it is asked by one task.
        asked = action.or(asked.take());
        while let Some(Action::Apply { goals, .. }) = asked.take() {
            hold(&goals);
            let answer = if input.byte() & 1 == 0 { Ok(()) } else { Err("no".to_owned()) };
            asked = follow.answered(now, answer);
        }
    }
    rest(&mut follow, now);
    let _ = follow.state();
}

/// With nobody doing anything any more it comes to rest, however the compositor answers.
fn rest(follow: &mut Follow, mut now: Instant) {
    for _ in 0..ROUNDS {
        let Some(deadline) = follow.deadline() else { return assert!(follow.is_settled()) };
        now = now.max(deadline);
        let mut action = follow.woke(now);
        while let Some(Action::Apply { goals, .. }) = action {
            hold(&goals);
            action = follow.answered(now, Ok(()));
        }
    }
    panic!("no end of it: {follow:?}");
}

/// What a compositor may be asked for.
fn hold(goals: &[Goal]) {
    for goal in goals {
        // wlroots divides by it.
        assert!(goal.refresh > 0, "{goal:?}");
    }
    let mut names: Vec<_> = goals.iter().map(|goal| &goal.name).collect();
    names.dedup();
    assert_eq!(names.len(), goals.len(), "{goals:?}");
}
