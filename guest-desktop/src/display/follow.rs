//! Decides what becomes of a desktop's screens: pure, events in, actions out, the time an argument.
//!
//! ```text
//!             offered, wanted                quiet, or its patience over
//!   [Idle] -------------------> [Settling] ------------------------------> [Asked]
//!     ^                             |  the desktop followed by itself         | its answer
//!     |<----------------------------+                                         v
//!     +<---------- it shows what was asked, or nothing is left to try ---- [Verifying]
//!                                                   the next way ^------------+ it does not
//! ```
//! A screen's size is ruled by what the VM's display offers, until the guest's user chooses another, or the host asks for
//! one. What a desktop answers counts for little: what it shows afterwards does. Its user's scale outlives every size.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hospes_protocol::display::{self, Position, Rule, Scale, Size, Want};

use super::edid::Best;
use super::layout::{Goal, Manners, Output, Way, arrange, is_near};

/// How long nothing may have changed before it is acted upon: a drag of a window's edge is many changes.
const QUIET: Duration = Duration::from_millis(50);
/// How long a desktop that follows by itself gets once its list has the new size.
const LISTED: Duration = Duration::from_millis(300);
/// How long a desktop gets to show what it said yes to.
const SHOW: Duration = Duration::from_secs(3);
/// For how long behind a change of the VM's display what a desktop does is its own answer to that, not its user's choice.
const ANSWER: Duration = Duration::from_secs(2);
/// Pixels by which a desktop that rounds may miss.
const NEAR: u32 = 8;
/// How often what is halfway there is asked for again.
const ROUNDS: u32 = 3;
/// Screens that are remembered, those that are gone included.
const REMEMBERED: usize = 64;

/// What the rim does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make the screens so, by this way, and say how that went.
    Apply {
        /// Every screen that there is.
        goals: Vec<Goal>,
        /// How sizes are set that change.
        way: Way,
    },
}

/// Why a screen is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The desktop rounds.
    #[error("The desktop has {got} as the nearest to {wanted}")]
    Nearest {
        /// What it was to be.
        wanted: Size,
        /// What it is.
        got: Size,
    },
    /// The desktop takes listed sizes alone.
    #[error("The desktop lists no mode of {wanted}, and takes no other")]
    Unlisted {
        /// What it was to be.
        wanted: Size,
    },
    /// The desktop said no.
    #[error("The desktop refused {wanted}: {why}")]
    Refused {
        /// What it was to be.
        wanted: Size,
        /// Its words.
        why: String,
    },
    /// The desktop said yes, and did something else.
    #[error("The desktop agreed to {wanted} at scale {scale} and shows {got} at scale {got_scale}")]
    Ignored {
        /// What it was to be.
        wanted: Size,
        /// At which scale.
        scale: Scale,
        /// What it is.
        got: Size,
        /// At which scale.
        got_scale: Scale,
    },
    /// The VM's display offers a size that no screen can have.
    #[error("The VM's display offers {offered}, which no screen can have")]
    Clamped {
        /// What it offers.
        offered: Size,
    },
}

/// Why a request of the host's cannot even be tried. The host is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no desktop.
    #[error("The guest's screens cannot be reached")]
    NoDesktop,
    /// No such screen.
    #[error("The guest has no screen {0}; it has {1}")]
    NoOutput(String, String),
    /// Which one is meant is not clear.
    #[error("The guest has several screens, so one must be named: {0}")]
    Several(String),
    /// It is off.
    #[error("The screen {0} is off")]
    Off(String),
    /// Screens have no scale there.
    #[error("The guest's desktop has no scale for its screens")]
    NoScale,
}

/// What is remembered of a screen.
#[derive(Debug, Clone, Default)]
struct Memory {
    rule: Option<Rule>,
    /// What the host asked for, until somebody changes it.
    asked: Want,
    /// The user's scale.
    scale: Option<Scale>,
    problem: Option<Problem>,
}

#[derive(Debug)]
enum Phase {
    Idle,
    Settling { until: Instant },
    Asked { way: usize },
    Verifying { way: usize, until: Instant },
}

/// The decisions about one desktop's screens.
#[derive(Debug)]
pub struct Follow {
    manners: Option<Manners>,
    outputs: Vec<Output>,
    offered: BTreeMap<String, Best>,
    /// When that last changed.
    stirred: Option<Instant>,
    memory: BTreeMap<String, Memory>,
    phase: Phase,
    /// What is under way, or was tried last and could not be had.
    tried: Vec<Goal>,
    /// The screens as they were before what is under way.
    before: Vec<Output>,
    /// The desktop's word on the last way.
    said: Option<String>,
    /// How often all ways were tried since the goals changed.
    rounds: u32,
}

impl Default for Follow {
    fn default() -> Self {
        Self {
            manners: None,
            outputs: Vec::new(),
            offered: BTreeMap::new(),
            stirred: None,
            memory: BTreeMap::new(),
            phase: Phase::Idle,
            tried: Vec::new(),
            before: Vec::new(),
            said: None,
            rounds: 0,
        }
    }
}

impl Follow {
    /// A desktop is there. What its screens are is told next.
    pub fn came(&mut self, manners: Manners) {
        self.gone();
        self.manners = Some(manners);
    }

    /// The desktop is gone. What the host asked for is kept for the next one; what its user chose was this one's.
    pub fn gone(&mut self) {
        self.manners = None;
        self.outputs.clear();
        self.phase = Phase::Idle;
        self.tried.clear();
        for memory in self.memory.values_mut() {
            *memory = Memory { asked: std::mem::take(&mut memory.asked), ..Memory::default() };
        }
    }

    /// What the VM's display offers now, by the screens' names.
    pub fn offered(&mut self, now: Instant, offered: BTreeMap<String, Best>) -> Option<Action> {
        if self.offered == offered {
            return None;
        }
        self.offered = offered;
        self.stirred = Some(now);
        self.reconsider();
        let patience = self.manners.map_or(QUIET, |manners| manners.patience.max(QUIET));
        self.settle(now, patience, true)
    }

    /// The screens are so now.
    pub fn seen(&mut self, now: Instant, mut outputs: Vec<Output>) -> Option<Action> {
        outputs.sort_by(|one, other| one.name.cmp(&other.name));
        outputs.dedup_by(|one, other| one.name == other.name);
        let idle = matches!(self.phase, Phase::Idle);
        let goals = self.goals();
        let before = std::mem::replace(&mut self.outputs, outputs);
        self.remember_less();
        for output in &self.outputs {
            let old = before.iter().find(|old| old.name == output.name);
            let goal = goals.iter().find(|goal| goal.name == output.name);
            let offered = self.offered.get(&output.name).map(|best| best.size.clamped());
            let memory = self.memory.entry(output.name.clone()).or_default();
            match old.filter(|old| old.size.is_some()) {
                None if output.size.is_some() => memory.meet(output, offered),
                Some(old) if idle => {
                    let patience = self.manners.map_or(Duration::ZERO, |manners| manners.patience);
                    let ours = self.stirred.is_some_and(|stirred| now < stirred + patience + ANSWER);
                    memory.judge(output, old, goal, offered, ours);
                }
                _ => (),
            }
        }
        self.reconsider();
        match self.phase {
            Phase::Idle => self.settle(now, Duration::ZERO, false),
            Phase::Settling { until } => {
                let goals = self.goals();
                if self.are_met(&goals) {
                    self.rest();
                } else if until > now + LISTED && self.has_answered(&goals) {
                    self.phase = Phase::Settling { until: now + LISTED };
                }
                None
            }
            Phase::Asked { .. } => None,
            Phase::Verifying { way, .. } => {
                if self.are_met(&self.tried) {
                    return self.done(now);
                }
                // One that rounds has done what it could.
                let last = self.manners.is_none_or(|manners| self.next_way(manners, way + 1).is_none());
                if last && self.said.is_none() && self.outputs != self.before && self.is_nearly() {
                    return self.gave_up(now);
                }
                // The size is there and the scale is not: some set them one after the other, and some forget one.
                if let Phase::Verifying { until, .. } = &mut self.phase
                    && self.tried.iter().zip(&self.outputs).all(|(goal, output)| goal.size == output.size)
                {
                    *until = (*until).min(now + LISTED);
                }
                None
            }
        }
    }

    /// How the last action went.
    pub fn answered(&mut self, now: Instant, answer: Result<(), String>) -> Option<Action> {
        let Phase::Asked { way } = self.phase else { return None };
        match answer {
            Ok(()) => {
                self.said = None;
                self.phase = Phase::Verifying { way, until: now + SHOW };
                if self.are_met(&self.tried) { self.done(now) } else { None }
            }
            Err(why) => {
                self.said = Some(why);
                self.act(now, way + 1)
            }
        }
    }

    /// The host asks for something, once it has been found well-formed.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is changed then.
    pub fn want(&mut self, now: Instant, wants: &[Want]) -> Result<Option<Action>, Refusal> {
        let mut named = Vec::new();
        for want in wants {
            let output = self.find(&want.output)?;
            if output.size.is_none() {
                return Err(Refusal::Off(output.name.clone()));
            }
            if want.scale.is_some() && !self.manners.is_some_and(|manners| manners.scales) {
                return Err(Refusal::NoScale);
            }
            named.push((output.name.clone(), want));
        }
        for (name, want) in named {
            let memory = self.memory.entry(name).or_default();
            if want.size.is_some() {
                memory.asked.size = want.size;
                memory.rule = Some(Rule::HOST);
            }
            if want.scale.is_some() {
                memory.asked.scale = want.scale;
                memory.scale = want.scale;
            }
            if want.position.is_some() {
                memory.asked.position = want.position;
            }
        }
        // Somebody who asks again wants it tried again.
        self.tried.clear();
        Ok(self.settle(now, Duration::ZERO, true))
    }

    /// The screen (all where it is empty) follows the VM's display again.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn follow(&mut self, now: Instant, output: &str) -> Result<Option<Action>, Refusal> {
        let names: Vec<String> = if output.is_empty() {
            self.outputs.iter().map(|output| output.name.clone()).collect()
        } else {
            vec![self.find(output)?.name.clone()]
        };
        if self.manners.is_none() {
            return Err(Refusal::NoDesktop);
        }
        for name in names {
            let memory = self.memory.entry(name).or_default();
            memory.asked.size = None;
            memory.rule = Some(Rule::FOLLOWS);
        }
        self.tried.clear();
        Ok(self.settle(now, Duration::ZERO, true))
    }

    /// The deadline is past.
    pub fn woke(&mut self, now: Instant) -> Option<Action> {
        match self.phase {
            Phase::Settling { until } if now >= until => self.act(now, 0),
            Phase::Verifying { until, .. }
                if now >= until && self.outputs != self.before && self.rounds < ROUNDS =>
            {
                self.act(now, 0)
            }
            Phase::Verifying { way, until } if now >= until => self.act(now, way + 1),
            _ => None,
        }
    }

    /// When to call [`woke`](Self::woke), unless something happens before.
    #[must_use]
    pub const fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Settling { until } | Phase::Verifying { until, .. } => Some(until),
            Phase::Idle | Phase::Asked { .. } => None,
        }
    }

    /// Whether nothing is under way.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// The screens as the host is told of them.
    #[must_use]
    pub fn state(&self) -> Vec<display::Output> {
        let tell = |output: &Output| {
            let memory = self.memory.get(&output.name);
            let offered = self.offered.get(&output.name).map(|best| best.size);
            let rule = memory.and_then(|memory| memory.rule).unwrap_or(Rule::FOLLOWS);
            let clamped = offered
                .filter(|offered| rule == Rule::FOLLOWS && !offered.is_sane())
                .map(|offered| Problem::Clamped { offered }.to_string());
            display::Output {
                name: output.name.clone(),
                size: output.size,
                refresh: output.refresh,
                scale: output.scale,
                position: output.position,
                offered,
                rule,
                problem: memory
                    .and_then(|memory| memory.problem.as_ref())
                    .map(ToString::to_string)
                    .or(clamped),
            }
        };
        self.outputs.iter().map(tell).collect()
    }

    fn find(&self, name: &str) -> Result<&Output, Refusal> {
        if self.manners.is_none() || self.outputs.is_empty() {
            return Err(Refusal::NoDesktop);
        }
        let names = || self.outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>().join(", ");
        match &self.outputs[..] {
            [only] if name.is_empty() => Ok(only),
            _ if name.is_empty() => Err(Refusal::Several(names())),
            outputs => outputs
                .iter()
                .find(|output| output.name == name)
                .ok_or_else(|| Refusal::NoOutput(name.to_owned(), names())),
        }
    }

    /// What a user put back to what is offered follows again.
    fn reconsider(&mut self) {
        for output in &self.outputs {
            let offered = self.offered.get(&output.name).map(|best| best.size.clamped());
            if let Some(memory) = self.memory.get_mut(&output.name)
                && memory.rule == Some(Rule::USER)
                && output.size.is_some()
                && output.size == offered
            {
                memory.rule = Some(Rule::FOLLOWS);
            }
        }
    }

    /// What every screen is to be.
    fn goals(&self) -> Vec<Goal> {
        let scales = self.manners.is_some_and(|manners| manners.scales);
        let mut goals: Vec<Goal> = self.outputs.iter().map(|output| self.goal(output, scales)).collect();
        arrange(&self.outputs, &mut goals);
        goals
    }

    fn goal(&self, output: &Output, scales: bool) -> Goal {
        let none = Memory::default();
        let memory = self.memory.get(&output.name).unwrap_or(&none);
        let best = self.offered.get(&output.name);
        let wanted = match memory.rule {
            Some(Rule::HOST) => memory.asked.size,
            Some(Rule::FOLLOWS) => best.map(|best| best.size.clamped()),
            _ => None,
        };
        let size = output.size.map(|now| wanted.unwrap_or(now));
        let refresh = match best {
            _ if size == output.size => output.refresh,
            Some(best) if Some(best.size) == size => best.refresh,
            _ => 0,
        };
        let mut scale = output.scale;
        if let Some(kept) = memory.scale.filter(|_| scales) {
            let can = size.and_then(|size| output.listed(size)).map_or(&[][..], |mode| &mode.scales);
            scale = can.iter().copied().min_by_key(|can| can.0.abs_diff(kept.0)).unwrap_or(kept);
        }
        Goal {
            name: output.name.clone(),
            size,
            refresh: if refresh == 0 { 60_000 } else { refresh },
            scale,
            position: memory.asked.position.unwrap_or(output.position),
            placed: memory.asked.position.is_some(),
        }
    }

    fn are_met(&self, goals: &[Goal]) -> bool {
        goals.len() == self.outputs.len()
            && goals.iter().zip(&self.outputs).all(|(goal, output)| goal.is_met(output))
    }

    /// Whether a desktop that follows by itself shows that it has heard of the change.
    fn has_answered(&self, goals: &[Goal]) -> bool {
        goals.iter().zip(&self.outputs).all(|(goal, output)| {
            goal.size == output.size || goal.size.is_some_and(|size| output.listed(size).is_some())
        })
    }

    /// Whether every screen is at least as near to what it was to be as one that rounds comes.
    fn is_nearly(&self) -> bool {
        self.tried.len() == self.outputs.len()
            && self.tried.iter().zip(&self.outputs).all(|(goal, output)| nearly(goal, output))
    }

    /// Begins to settle where there is something to do. `anew` where the wait begins again with each change.
    fn settle(&mut self, now: Instant, wait: Duration, anew: bool) -> Option<Action> {
        self.manners?;
        match self.phase {
            Phase::Idle => (),
            Phase::Settling { .. } if anew => (),
            // What is under way ends first, and then looks for itself.
            _ => return None,
        }
        let goals = self.goals();
        if self.are_met(&goals) {
            self.rest();
            return None;
        }
        if is_same(&goals, &self.tried) {
            // It could not be had, and nothing has changed.
            self.phase = Phase::Idle;
            return None;
        }
        self.phase = Phase::Settling { until: now + wait };
        if wait.is_zero() { self.act(now, 0) } else { None }
    }

    /// All is as it should be.
    fn rest(&mut self) {
        self.phase = Phase::Idle;
        self.tried.clear();
        for memory in self.memory.values_mut() {
            memory.problem = None;
        }
    }

    /// Tries by the next way that there is, from this one on.
    fn act(&mut self, now: Instant, from: usize) -> Option<Action> {
        let manners = self.manners?;
        if from == 0 {
            let goals = self.goals();
            self.rounds = if is_same(&goals, &self.tried) { self.rounds + 1 } else { 0 };
            self.tried = goals;
            self.before.clone_from(&self.outputs);
            self.said = None;
            if self.are_met(&self.tried) {
                self.rest();
                return None;
            }
        } else if self.tried.len() != self.outputs.len()
            || self.tried.iter().zip(&self.outputs).any(|(goal, output)| goal.name != output.name)
        {
            // Screens came or went meanwhile: what was tried is not what is wanted now.
            return self.act(now, 0);
        }
        match self.next_way(manners, from) {
            Some(way) => {
                self.phase = Phase::Asked { way };
                Some(Action::Apply { goals: self.tried.clone(), way: manners.ways[way] })
            }
            None => self.gave_up(now),
        }
    }

    fn next_way(&self, manners: Manners, from: usize) -> Option<usize> {
        let fits = |way: &Way| {
            *way == Way::Custom
                || self.tried.iter().zip(&self.outputs).all(|(goal, output)| {
                    goal.size == output.size || goal.size.is_some_and(|size| output.listed(size).is_some())
                })
        };
        (from..manners.ways.len()).find(|at| fits(&manners.ways[*at]))
    }

    /// What was asked for is there. More may have been asked for meanwhile.
    fn done(&mut self, now: Instant) -> Option<Action> {
        self.rest();
        self.settle(now, QUIET, false)
    }

    /// Nothing is left to try.
    fn gave_up(&mut self, now: Instant) -> Option<Action> {
        let custom = self.manners.is_some_and(|manners| manners.ways.contains(&Way::Custom));
        for (goal, output) in self.tried.iter().zip(&self.outputs) {
            let (Some(wanted), Some(got)) = (goal.size, output.size) else { continue };
            let problem = if goal.is_met(output) {
                None
            } else if wanted != got && !custom && output.listed(wanted).is_none() {
                Some(Problem::Unlisted { wanted })
            } else if nearly(goal, output) && wanted != got && self.said.is_none() {
                Some(Problem::Nearest { wanted, got })
            } else {
                Some(match self.said.clone() {
                    Some(why) => Problem::Refused { wanted, why },
                    None => Problem::Ignored { wanted, scale: goal.scale, got, got_scale: output.scale },
                })
            };
            self.memory.entry(goal.name.clone()).or_default().problem = problem;
        }
        self.phase = Phase::Idle;
        self.settle(now, QUIET, false)
    }

    fn remember_less(&mut self) {
        if self.memory.len() > REMEMBERED {
            let outputs = &self.outputs;
            self.memory.retain(|name, _| outputs.iter().any(|output| output.name == *name));
        }
    }
}

impl Memory {
    /// A screen that was not there before, or was off.
    fn meet(&mut self, output: &Output, offered: Option<Size>) {
        self.scale = self.asked.scale.or(self.scale).or(Some(output.scale));
        if self.asked.size.is_some() {
            self.rule = Some(Rule::HOST);
            return;
        }
        // A desktop that we find at another size than its own list's best was told so by its user, or a file of theirs.
        // One that is at its best, be the list ever so old, was told nothing.
        let told = offered.is_some() && output.size != offered && output.size != output.preferred();
        if self.rule.is_none() {
            self.rule = Some(if told { Rule::USER } else { Rule::FOLLOWS });
        }
    }

    /// A screen changed while nothing of ours was under way. `ours` where it may be an answer to the VM's display.
    fn judge(
        &mut self,
        output: &Output,
        old: &Output,
        goal: Option<&Goal>,
        offered: Option<Size>,
        ours: bool,
    ) {
        let follows = self.rule == Some(Rule::FOLLOWS) && output.size == offered;
        let late = goal.is_some_and(|goal| output.size == goal.size);
        if output.size.is_some() && output.size != old.size {
            if follows || late || ours {
                return;
            }
            let put_back = output.size == offered;
            self.rule = Some(if put_back { Rule::FOLLOWS } else { Rule::USER });
            self.asked.size = None;
        }
        if output.scale != old.scale && !goal.is_some_and(|goal| is_near(goal.scale, output.scale)) {
            self.scale = Some(output.scale);
            self.asked.scale = None;
        }
        if output.position != old.position && self.asked.position != Some(output.position) {
            self.asked.position = None;
        }
    }
}

/// Whether two lists of goals ask for the same. Places that nobody asked for do not count.
fn is_same(one: &[Goal], other: &[Goal]) -> bool {
    let place = |goal: &Goal| goal.placed.then_some(goal.position);
    let key =
        |goal: &Goal| -> (Option<Size>, Scale, Option<Position>) { (goal.size, goal.scale, place(goal)) };
    one.len() == other.len()
        && one.iter().zip(other).all(|(one, other)| one.name == other.name && key(one) == key(other))
}

fn nearly(goal: &Goal, output: &Output) -> bool {
    match (goal.size, output.size) {
        (Some(wanted), Some(got)) => {
            wanted.width.abs_diff(got.width) <= NEAR
                && wanted.height.abs_diff(got.height) <= NEAR
                && is_near(goal.scale, output.scale)
        }
        (wanted, got) => wanted == got,
    }
}

#[cfg(test)]
mod tests;
