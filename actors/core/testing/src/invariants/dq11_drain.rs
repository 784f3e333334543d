//! DQ-11: while the server shuts down, the group begins nothing: no run, no task, no request for a
//! lock. It keeps no lock that nothing uses.

use std::rc::Rc;

use greenroom_core::{Fact, Recorded};

use super::{Begun, Checked, Invariant, Played, ensure};

/// Only worlds know that the server shuts down.
#[derive(Default)]
pub struct Drains {
    is_draining: bool,
}

impl Invariant for Drains {
    fn begin(&mut self, step: &Rc<Begun>) {
        self.is_draining = step.settings.is_draining;
    }

    fn fact(&mut self, Recorded { fact, .. }: &Recorded) -> Checked {
        let begins = matches!(
            fact,
            Fact::RunStarted { .. }
                | Fact::TaskClaimed { .. }
                | Fact::TaskStarted { .. }
                | Fact::LockAsked { .. }
        );
        ensure!(!(self.is_draining && begins), "DQ-11: the server shuts down: {fact:?}");
        Ok(())
    }

    fn end(&mut self, step: &Played) -> Checked {
        let unused = step.group.lease().filter(|_| step.group.attempt().is_none());
        let is_kept = self.is_draining && unused.is_some();
        ensure!(!is_kept, "DQ-11: the server shuts down, and the group keeps {unused:?}");
        Ok(())
    }
}
