//! What a desktop's screens are, and what they are to become.

use std::time::Duration;

use hospes_protocol::display::{Position, Scale, Size};

/// A mode that the desktop lists for a screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mode {
    /// Its size.
    pub size: Size,
    /// Pictures in a thousand seconds.
    pub refresh: u32,
    /// The one that the list calls the best.
    pub preferred: bool,
    /// The scales it may have; any where it is empty.
    pub scales: Vec<Scale>,
}

/// A screen as the desktop has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its size in its own pixels; none where it is off.
    pub size: Option<Size>,
    /// Pictures in a thousand seconds.
    pub refresh: u32,
    /// Its scale.
    pub scale: Scale,
    /// Its upper left corner, in the desktop's units.
    pub position: Position,
    /// It is turned by a quarter, so that what is wide on it is high.
    pub turned: bool,
    /// What the desktop lists for it, which may be older than what it shows.
    pub modes: Vec<Mode>,
}

impl Output {
    /// The listed mode of this size, the one with the most pictures where there are several.
    #[must_use]
    pub fn listed(&self, size: Size) -> Option<&Mode> {
        let fitting = self.modes.iter().filter(|mode| mode.size == size);
        fitting.max_by_key(|mode| (mode.preferred, mode.refresh))
    }

    /// The size that its list calls the best. Where none is marked it is the first: kernels sort them so.
    #[must_use]
    pub fn preferred(&self) -> Option<Size> {
        let marked = self.modes.iter().find(|mode| mode.preferred);
        marked.or_else(|| self.modes.first()).map(|mode| mode.size)
    }

    /// The width and height that something of this size and scale takes on the desktop.
    fn extent(&self, size: Size, scale: Scale) -> (i32, i32) {
        let (width, height) = if self.turned { (size.height, size.width) } else { (size.width, size.height) };
        let units = |len: u32| {
            let units = (u64::from(len) * 1000).div_ceil(u64::from(scale.0.max(1)));
            i32::try_from(units).unwrap_or(i32::MAX)
        };
        (units(width), units(height))
    }
}

/// What a screen is to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goal {
    /// Its name.
    pub name: String,
    /// Its size; none where it is off, and stays so.
    pub size: Option<Size>,
    /// Pictures in a thousand seconds. Never zero: there are compositors that fall over it.
    pub refresh: u32,
    /// Its scale.
    pub scale: Scale,
    /// Its place.
    pub position: Position,
    /// Somebody asked for this place; where nobody did, a desktop that arranges its screens itself may.
    pub placed: bool,
}

impl Goal {
    /// Whether the screen has become so.
    #[must_use]
    pub fn is_met(&self, output: &Output) -> bool {
        self.size == output.size
            && (self.size.is_none()
                || (is_near(self.scale, output.scale) && (!self.placed || self.position == output.position)))
    }
}

/// Whether two scales are the same but for how a desktop rounds: fractions of 120 or 256.
#[must_use]
pub const fn is_near(one: Scale, other: Scale) -> bool {
    one.0.abs_diff(other.0) <= 10
}

/// Moves what stands right of a screen that grows or shrinks, and what stands below it, so that neighbours stay
/// neighbours. Screens that somebody placed stay where they are. `goals` stand in the order of `outputs`.
pub fn arrange(outputs: &[Output], goals: &mut [Goal]) {
    let extent = |output: &Output| output.size.map(|size| output.extent(size, output.scale));
    for (at, output) in outputs.iter().enumerate() {
        let (Some((old_width, old_height)), Some(size)) = (extent(output), goals[at].size) else { continue };
        let (width, height) = output.extent(size, goals[at].scale);
        let (right, bottom) =
            (output.position.x.saturating_add(old_width), output.position.y.saturating_add(old_height));
        for (other, goal) in outputs.iter().zip(goals.iter_mut()) {
            let Some((other_width, other_height)) = extent(other) else { continue };
            if goal.placed || other.name == output.name {
                continue;
            }
            let Position { x, y } = other.position;
            let beside = y < bottom && output.position.y < y.saturating_add(other_height);
            let beneath = x < right && output.position.x < x.saturating_add(other_width);
            if beside && x >= right {
                goal.position.x = goal.position.x.saturating_add(width).saturating_sub(old_width);
            } else if beneath && y >= bottom {
                goal.position.y = goal.position.y.saturating_add(height).saturating_sub(old_height);
            }
        }
    }
}

/// Ways to set a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Choosing a mode of the desktop's list.
    Listed,
    /// Making a mode of this size.
    Custom,
}

/// What a desktop can do, and does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manners {
    /// Its ways, the first to try first.
    pub ways: &'static [Way],
    /// How long it gets to follow the VM's display by itself; zero where it does not.
    pub patience: Duration,
    /// Whether its screens have a scale.
    pub scales: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(name: &str, size: (u32, u32), at: (i32, i32)) -> Output {
        let size = Some(Size { width: size.0, height: size.1 });
        let position = Position { x: at.0, y: at.1 };
        let (name, modes) = (name.to_owned(), Vec::new());
        Output { name, size, refresh: 60_000, scale: Scale::ONE, position, turned: false, modes }
    }

    fn goal(output: &Output) -> Goal {
        let Output { size, refresh, scale, position, .. } = *output;
        Goal { name: output.name.clone(), size, refresh, scale, position, placed: false }
    }

    #[test]
    fn neighbours_stay_neighbours() {
        let outputs = [
            output("left", (1000, 800), (0, 0)),
            output("right", (1000, 800), (1000, 0)),
            output("below", (1000, 800), (0, 800)),
            output("farther", (1000, 800), (2000, 0)),
        ];
        let mut goals: Vec<Goal> = outputs.iter().map(goal).collect();
        goals[0].size = Some(Size { width: 1600, height: 700 });
        goals[1].scale = Scale(2000);
        arrange(&outputs, &mut goals);
        let places: Vec<_> = goals.iter().map(|goal| (goal.position.x, goal.position.y)).collect();
        assert_eq!(places, [(0, 0), (1600, 0), (0, 700), (2100, 0)]);
    }

    #[test]
    fn what_somebody_placed_and_what_is_off_stays() {
        let mut outputs = vec![output("a", (1000, 800), (0, 0)), output("b", (1000, 800), (1000, 0))];
        outputs.push(Output { size: None, ..output("c", (1, 1), (1000, 0)) });
        let mut goals: Vec<Goal> = outputs.iter().map(goal).collect();
        goals[0].size = Some(Size { width: 500, height: 800 });
        goals[1].placed = true;
        arrange(&outputs, &mut goals);
        assert!(goals[1..].iter().all(|goal| goal.position.x == 1000));
    }

    #[test]
    fn a_turned_screen_is_as_wide_as_it_is_high() {
        let outputs =
            [Output { turned: true, ..output("a", (1000, 800), (0, 0)) }, output("b", (9, 9), (800, 0))];
        let mut goals: Vec<Goal> = outputs.iter().map(goal).collect();
        goals[0].size = Some(Size { width: 1000, height: 900 });
        arrange(&outputs, &mut goals);
        assert_eq!(goals[1].position.x, 900);
    }
}
