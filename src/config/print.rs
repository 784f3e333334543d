//! The effective values as `check-config --json` prints them, by section and key.

use std::{collections::BTreeMap, time::Duration};

use greenroom_actors::{
    profile::{Capacity, Defaults, Profile, Sandbox},
    quota::QuotaMax,
};
use greenroom_core::Limits;
use serde::Serializer;
use serde_json::{Value, json};

use super::Config;

impl Config {
    /// Returns all effective values. Of variables and headers it has the names only: a value may be
    /// a secret (C16).
    pub fn to_json(&self) -> Value {
        let agents: BTreeMap<_, _> =
            self.agents.iter().map(|(name, profile)| (name, agent(profile))).collect();
        json!({
            "server": self.server,
            "storage": self.storage,
            "limits": limits(&self.capacity, &self.quotas, &self.defaults.limits),
            "defaults": defaults(&self.defaults),
            "otlp": self.otlp,
            "agents": agents,
        })
    }
}

fn limits(capacity: &Capacity, quotas: &QuotaMax, limits: &Limits) -> Value {
    let Capacity { running_groups, resident_agents, line_bytes_max } = capacity;
    json!({
        "running_groups": running_groups,
        "resident_agents": resident_agents,
        "queue": limits.queue_max,
        "line": line_bytes_max,
        "groups": quotas.groups,
        "queued": quotas.queued_bytes,
        "waits": quotas.waits,
        "streams": quotas.streams,
        "locks": quotas.locks,
        "permissions": quotas.permissions,
        "unread": quotas.unread_bytes,
    })
}

fn defaults(defaults: &Defaults) -> Value {
    let Defaults { agent, limits, auto_compact, lock_ttl, retry, on_interrupt, permission_policy } =
        defaults;
    let ms = |ms| text(Duration::from_millis(ms));
    json!({
        "agent": agent,
        "auto_compact": auto_compact,
        "permission_policy": permission_policy,
        "permission_timeout": ms(limits.permission_ms),
        "on_interrupt": on_interrupt,
        "retry": retry,
        "retry_base": ms(limits.retry_base_ms),
        "turn_timeout": ms(limits.turn_ms),
        "compaction_timeout": ms(limits.compaction_ms),
        "lock_ttl": ms(lock_ttl.ms()),
        "idle_timeout": ms(limits.idle_ms),
    })
}

fn agent(profile: &Profile) -> Value {
    let Profile {
        name: _,
        command,
        args,
        env,
        env_pass,
        cwd_roots,
        auth_method,
        start_timeout,
        compaction,
        auto_compact,
        signals,
        umask,
        no_new_privs,
        rlimits,
        sandbox: Sandbox { level, read, write, network },
    } = profile;
    json!({
        "command": command,
        "args": args,
        "env": env.keys().collect::<Vec<_>>(),
        "env_pass": env_pass,
        "cwd_roots": cwd_roots,
        "signals": signals,
        "auto_compact": auto_compact,
        "auth_method": auth_method,
        "start_timeout": text(*start_timeout),
        "compaction": compaction,
        "umask": umask,
        "no_new_privs": no_new_privs,
        "rlimits": rlimits,
        "sandbox": level,
        "sandbox_read": read,
        "sandbox_write": write,
        "sandbox_network": network,
    })
}

fn text(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// Serializes a duration as the configuration writes it.
pub fn duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&text(*duration))
}

/// Serializes the names only.
pub fn names<S: Serializer>(
    variables: &BTreeMap<String, String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(variables.keys())
}

#[cfg(test)]
mod tests;
