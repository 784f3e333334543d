//! Recognizes variables that an orchestrator sets for a service named "greenroom…".
//!
//! Kubernetes sets them for each service of a namespace, Docker for each link. The operator did not
//! write them, so they are not misspelt keys. Knows the forms of their names, and no key.

/// The transport protocols that Kubernetes and Docker name.
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// The services that the environment describes.
pub struct Services {
    /// The prefixes of the variables of Docker's links. Only the prefix distinguishes a link's
    /// variable from a misspelt key.
    links: Vec<String>,
}

impl Services {
    pub fn of(environment: &[(String, String)]) -> Self {
        let link = |(name, value): &(String, String)| {
            let link = name.strip_suffix("_NAME")?;
            // `/container/alias`; the variable's name is built from the alias.
            let (container, alias) = value.strip_prefix('/')?.split_once('/')?;
            let alias = alias.to_uppercase().replace('-', "_");
            (!container.is_empty() && alias == link).then(|| link.to_owned())
        };
        Self { links: environment.iter().filter_map(link).collect() }
    }

    /// Whether a variable describes one of the services.
    pub fn describe(&self, name: &str, value: &str) -> bool {
        let is_of_link = |link: &String| {
            let suffix = name.strip_prefix(link.as_str());
            suffix.is_some_and(|suffix| suffix == "_NAME" || suffix.starts_with("_ENV_"))
        };
        is_about_a_port(name, value) || self.links.iter().any(is_of_link)
    }
}

/// Whether the variable is `…_SERVICE_HOST`, `…_SERVICE_PORT`, `…_SERVICE_PORT_HTTP`,
/// `…_PORT=tcp://…`, `…_PORT_80_TCP`, `…_PORT_80_TCP_ADDR` and the like.
fn is_about_a_port(name: &str, value: &str) -> bool {
    let names_a_port = || {
        let rest = name.rsplit_once("_SERVICE_PORT").map(|(_, rest)| rest);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    let is_address = || {
        let protocol = value.split_once("://").map(|(protocol, _)| protocol.to_uppercase());
        protocol.is_some_and(|protocol| PROTOCOLS.contains(&protocol.as_str()))
    };
    let words: Vec<&str> = name.split('_').collect();
    let is_of_a_port = match words.as_slice() {
        [.., "PORT", port, protocol] | [.., "PORT", port, protocol, "ADDR" | "PORT" | "PROTO"] => {
            port.parse::<u16>().is_ok() && PROTOCOLS.contains(protocol)
        }
        _ => false,
    };
    name.ends_with("_SERVICE_HOST")
        || names_a_port()
        || name.ends_with("_PORT") && is_address()
        || is_of_a_port
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_services_are_distinguished_from_misspelt_keys() {
        #[rustfmt::skip]
        let cases = [
            ("GREENROOM_PORT",                        "tcp://10.0.0.1:7433", true),
            ("GREENROOM_PORT",                        "udp://10.0.0.1:7433", true),
            ("GREENROOM_PORT",                        "7433",                false),
            ("GREENROOM_PORT",                        "http://10.0.0.1",     false),
            ("GREENROOM_SERVICE_HOST",                "10.0.0.1",            true),
            ("GREENROOM_SERVICE_PORT",                "7433",                true),
            ("GREENROOM_SERVICE_PORT_HTTP",           "7433",                true),
            ("GREENROOM_SERVICE_PORTS",               "7433",                false),
            ("GREENROOM_PORT_7433_TCP",               "tcp://10.0.0.1:7433", true),
            ("GREENROOM_PORT_7433_TCP_ADDR",          "10.0.0.1",            true),
            ("GREENROOM_PORT_7433_TCP_PORT",          "7433",                true),
            ("GREENROOM_PORT_7433_UDP_PROTO",         "udp",                 true),
            ("GREENROOM_PORT_7433_TCP_HOST",          "x",                   false),
            ("GREENROOM_PORT_70000_TCP",              "x",                   false),
            ("GREENROOM_PORT_X_TCP",                  "x",                   false),
            ("GREENROOM_SERVER_PORT",                 "tcp://10.0.0.1:7433", true),
            ("GREENROOM_SERVER_PORT_7433_TCP_PORT",   "7433",                true),
            ("GREENROOM_IM_PORT_PORT_7433_TCP_PROTO", "tcp",                 true),
            ("GREENROOM_SERVER_NAME",                 "/web/greenroom-server", true),
            ("GREENROOM_SERVER_ENV_PATH",             "/bin",                true),
            ("GREENROOM_OTLP_NAME",                   "/web/other",          false),
            ("GREENROOM_OTLP_ENV_PATH",               "/bin",                false),
            ("GREENROOM_SERVER_LISTNE",               "127.0.0.1:1",         false),
        ];
        let all = cases.map(|(name, value, _)| (name.to_owned(), value.to_owned()));
        let services = Services::of(&all);
        for (name, value, expected) in cases {
            assert_eq!(services.describe(name, value), expected, "{name}={value}");
        }
    }
}
