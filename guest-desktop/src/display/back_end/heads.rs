//! What compositors tell of screens over Wayland: an object for each, and one for each of its modes, until they take it
//! back.

use hospes_protocol::display::{Position, Scale, Size};

use crate::display::layout::{Mode, Output};

/// Modes of one screen that are remembered.
const MODES: usize = 512;
/// Screens that are remembered.
pub(super) const HEADS: usize = 64;

/// A screen, as object `H`, with modes that are objects `M`.
#[derive(Debug)]
pub(super) struct Head<H, M> {
    pub(super) proxy: H,
    pub(super) name: String,
    pub(super) enabled: bool,
    pub(super) current: Option<M>,
    pub(super) position: Position,
    pub(super) turned: bool,
    pub(super) scale: f64,
    pub(super) modes: Vec<(M, Mode)>,
}

impl<H, M: PartialEq> Head<H, M> {
    fn new(proxy: H) -> Self {
        Self {
            proxy,
            name: String::new(),
            enabled: false,
            current: None,
            position: Position::default(),
            turned: false,
            scale: 1.0,
            modes: Vec::new(),
        }
    }

    /// It has a mode more, of which nothing is known yet. One too many is forgotten.
    pub(super) fn add_mode(&mut self, proxy: M) {
        if self.modes.len() < MODES {
            let size = Size { width: 0, height: 0 };
            self.modes.push((proxy, Mode { size, refresh: 0, preferred: false, scales: Vec::new() }));
        }
    }

    /// Its transform, as `wl_output` numbers them: the odd ones are quarter turns, flipped or not.
    pub(super) fn transform(&mut self, transform: u32) {
        self.turned = transform % 2 == 1;
    }

    fn mode(&self) -> Option<&Mode> {
        let current = self.current.as_ref()?;
        self.modes.iter().find(|(proxy, _)| proxy == current).map(|(_, mode)| mode)
    }

    /// Its size, while it is on.
    pub(super) fn size(&self) -> Option<Size> {
        self.mode().filter(|_| self.enabled).map(|mode| mode.size)
    }

    pub(super) fn output(&self) -> Output {
        Output {
            name: self.name.clone(),
            size: self.size(),
            refresh: self.mode().map_or(0, |mode| mode.refresh),
            scale: scale(self.scale),
            position: self.position,
            turned: self.turned,
            modes: self.modes.iter().map(|(_, mode)| mode.clone()).collect(),
        }
    }
}

/// The screens of a compositor.
#[derive(Debug)]
pub(super) struct Heads<H, M>(Vec<Head<H, M>>);

impl<H, M> Default for Heads<H, M> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<H: PartialEq, M: PartialEq> Heads<H, M> {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Head<H, M>> {
        self.0.iter()
    }

    pub(super) fn named(&self, name: &str) -> Option<&Head<H, M>> {
        self.0.iter().find(|head| head.name == name)
    }

    pub(super) fn get_mut(&mut self, proxy: &H) -> Option<&mut Head<H, M>> {
        self.0.iter_mut().find(|head| head.proxy == *proxy)
    }

    /// Whose mode it may be.
    pub(super) fn mode_mut(&mut self, proxy: &M) -> Option<&mut Mode> {
        let mut modes = self.0.iter_mut().flat_map(|head| &mut head.modes);
        modes.find(|(known, _)| known == proxy).map(|(_, mode)| mode)
    }

    /// A screen more, of which nothing is known yet. One too many is forgotten.
    pub(super) fn add(&mut self, proxy: H) {
        if self.0.len() < HEADS {
            self.0.push(Head::new(proxy));
        }
    }

    pub(super) fn remove(&mut self, proxy: &H) {
        self.0.retain(|head| head.proxy != *proxy);
    }

    pub(super) fn remove_mode(&mut self, proxy: &M) {
        for head in &mut self.0 {
            head.modes.retain(|(known, _)| known != proxy);
        }
    }
}

/// A mode's size, as Wayland tells it.
pub(super) fn size(width: i32, height: i32) -> Size {
    let side = |len: i32| u32::try_from(len).unwrap_or_default();
    Size { width: side(width), height: side(height) }
}

/// A mode's refresh rate in mHz, as Wayland tells it.
pub(super) fn refresh(millihertz: i32) -> u32 {
    u32::try_from(millihertz).unwrap_or_default()
}

/// A scale as a number from a compositor, whatever it may be.
pub(super) fn scale(number: f64) -> Scale {
    let thousandths = (number * 1000.0).round().clamp(1.0, 100_000.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped right above; NaN gives 0"
    )]
    let thousandths = thousandths as u32;
    Scale(if thousandths == 0 { 1000 } else { thousandths })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_is_what_was_told_of_it() {
        let mut heads = Heads::<u32, u32>::default();
        heads.add(1);
        assert_eq!(heads.iter().next().unwrap().output().size, None);
        let head = heads.get_mut(&1).unwrap();
        head.name = "Virtual-1".into();
        head.add_mode(10);
        head.add_mode(11);
        head.current = Some(11);
        head.transform(5);
        *heads.mode_mut(&11).unwrap() =
            Mode { size: size(800, -600), refresh: refresh(60_000), preferred: true, scales: Vec::new() };
        assert_eq!(heads.named("Virtual-1").unwrap().size(), None, "it is off");
        heads.get_mut(&1).unwrap().enabled = true;
        let told = heads.named("Virtual-1").unwrap().output();
        assert_eq!(
            (told.size, told.refresh, told.turned),
            (Some(Size { width: 800, height: 0 }), 60_000, true)
        );
        heads.remove_mode(&11);
        assert_eq!((heads.named("Virtual-1").unwrap().size(), heads.mode_mut(&11)), (None, None));
        heads.remove(&1);
        assert_eq!(heads.iter().count(), 0);
    }

    #[test]
    fn a_compositor_that_tells_without_end_is_forgotten() {
        let mut heads = Heads::<usize, usize>::default();
        (0..2 * HEADS).for_each(|head| heads.add(head));
        assert_eq!(heads.iter().count(), HEADS);
        (0..2 * MODES).for_each(|mode| heads.get_mut(&0).unwrap().add_mode(mode));
        assert_eq!(heads.named("").unwrap().modes.len(), MODES);
    }

    #[test]
    fn any_number_is_a_scale() {
        for (number, thousandths) in
            [(1.0, 1000), (1.5, 1500), (f64::NAN, 1000), (-3.0, 1), (0.0, 1), (1e300, 100_000)]
        {
            assert_eq!(scale(number), Scale(thousandths), "{number}");
        }
    }
}
