//! What an agent sends beside updates and answers: requests, and lines that are no message.

use greenroom_core::{
    Event, Json, Kinds, Lines, PermissionAsked, PermissionOption, PermissionShown,
};

use super::{Driver, Step};

impl Driver {
    /// Writes a line that is no message, in base64.
    pub fn reject(&mut self, bytes: &str) -> Step {
        let (reason, bytes) = ("no JSON".into(), bytes.into());
        self.apply(Event::OutputRejected { run: self.run(), reason, bytes })
    }

    /// Asks for a permission.
    pub fn ask(&mut self, request: u32) -> Step {
        let option = |kind: &str| PermissionOption { id: kind.into(), kind: kind.into() };
        let json = |text: &str| Json::parse(text.into()).unwrap();
        let asked = Box::new(PermissionAsked {
            request: Json::write(&request).unwrap(),
            tool_kind: None,
            options: vec![option("allow_once"), option("reject_once")],
            shown: PermissionShown { tool_call: json("{}"), options: json("[]") },
        });
        let kinds = Kinds::All("session/request_permission".into());
        let lines = Lines { count: 1, kinds, text: "{}".to_owned().into() };
        self.apply(Event::PermissionAsked { run: self.run(), lines, asked })
    }
}
