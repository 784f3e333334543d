//! Tests of what `check-config --json` prints.
#![allow(clippy::unwrap_used)]

use serde_json::json;

use crate::config::tests::from;

/// API-4: what `check-config --json` prints, by section and key; no value of a variable or header
/// is among it.
#[test]
fn the_effective_values_are_printed() {
    let config = from(
        "server.allowed_hosts = ['A.example']\n[storage]\nurl = 'sqlite://x.db'\n\
         [limits]\nrunning_groups = 9\nresident_agents = 2\nline = '512KiB'\n\
         [defaults]\nauto_compact = 0\npermission_policy = { default = 'reject', read = 'allow' }\n\
         on_interrupt = 'hold'\nretry = 'undelivered'\nturn_timeout = '90s'\n\
         [otlp]\nendpoint = 'http://[::1]:4318/'\nheaders = { key = 'canary' }\n\
         [agents.a]\ncommand = 'a'\nargs = ['b']\nenv = { KEY = 'canary' }\nenv_pass = ['HOME']\n\
         cwd_roots = ['/srv']\nsignals = ['hermes_stderr', 'hermes_meta', 'hermes_stderr']\n\
         auto_compact = 0.5\nauth_method = 'key'\nstart_timeout = '61s'\numask = '0027'\n\
         no_new_privs = true\nsandbox = 'landlock'\nsandbox_read = ['/r']\n\
         sandbox_write = ['/w']\nsandbox_network = [443]\ncompaction = { strategy = 'rotate' }\n\
         rlimits = { open_files = 16, processes = 2, core_size = '1MiB', file_size = '1GiB', \
         cpu_time = '90m' }\n[agents.b]\ncommand = 'b'\n",
    )
    .unwrap();
    let expected = json!({
        "server": {
            "listen": "127.0.0.1:7433", "allowed_hosts": ["a.example"], "max_body": 1 << 20,
            "drain_timeout": "30s",
        },
        "storage": { "path": "x.db", "retention_days": 0 },
        "limits": {
            "running_groups": 9, "resident_agents": 2, "queue": 1000, "line": 512 << 10,
            "groups": 100_000, "queued": 256 << 20, "waits": 10_000, "streams": 10_000,
            "locks": 10_000, "permissions": 10_000, "unread": 64 << 20,
        },
        "defaults": {
            "agent": "demo", "auto_compact": 0.0,
            "permission_policy": { "default": "reject", "read": "allow" },
            "permission_timeout": "10m", "on_interrupt": "hold", "retry": "undelivered",
            "retry_base": "5s", "turn_timeout": "1m 30s", "compaction_timeout": "10m",
            "lock_ttl": "5m", "idle_timeout": "10m",
        },
        "otlp": {
            "endpoint": "http://[::1]:4318/v1/traces", "headers": ["key"], "interval": "5s",
            "timeout": "10s", "backfill": false, "service_name": "greenroom",
        },
        "agents": {
            "a": {
                "command": "a", "args": ["b"], "env": ["KEY"], "env_pass": ["HOME"],
                "cwd_roots": ["/srv"], "signals": ["hermes_stderr", "hermes_meta", "hermes_stderr"],
                "auto_compact": 0.5, "auth_method": "key", "start_timeout": "1m 1s",
                "sandbox": "landlock", "sandbox_read": ["/r"], "sandbox_write": ["/w"],
                "sandbox_network": [443],
                "compaction": { "strategy": "rotate" }, "umask": 0o027, "no_new_privs": true,
                "rlimits": {
                    "open_files": 16, "processes": 2, "core_size": 1 << 20, "file_size": 1 << 30,
                    "cpu_seconds": 5400,
                },
            },
            "b": {
                "command": "b", "args": [], "env": [], "env_pass": [], "cwd_roots": [],
                "signals": [], "auto_compact": null, "auth_method": null, "start_timeout": "1m",
                "sandbox": "none", "sandbox_read": [], "sandbox_write": [],
                "sandbox_network": null,
                "compaction": { "strategy": "none" }, "umask": null, "no_new_privs": false,
                "rlimits": {
                    "open_files": null, "processes": null, "core_size": null, "file_size": null,
                    "cpu_seconds": null,
                },
            },
            "demo": {
                "command": "greenroom", "args": ["demo-agent"], "env": [], "env_pass": [],
                "cwd_roots": [], "signals": [], "auto_compact": null, "auth_method": null,
                "start_timeout": "1m", "umask": null, "no_new_privs": false,
                "sandbox": "none", "sandbox_read": [], "sandbox_write": [],
                "sandbox_network": null,
                "compaction": { "strategy": "command", "command": "/compact" },
                "rlimits": {
                    "open_files": null, "processes": null, "core_size": null, "file_size": null,
                    "cpu_seconds": null,
                },
            },
        },
    });
    assert_eq!(config.to_json(), expected);
}
