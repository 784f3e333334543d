//! Which values of the configuration are secrets, to be redacted wherever text leaves the process.

use greenroom_actors::secrets::is_secret_name;

use super::Config;

impl Config {
    /// Returns the secrets with their names: the values of all headers for the collector, and
    /// those of profiles' variables whose names say so, whether a profile sets them or passes them
    /// on from `environment`. Of a header such as `Bearer abc` each word is one, too.
    pub(super) fn secrets(&self, environment: &[(String, String)]) -> Vec<(String, String)> {
        let profiles = || self.agents.values();
        let set = profiles().flat_map(|profile| &profile.env);
        let passed = profiles().flat_map(|profile| &profile.env_pass);
        let passed = passed.flat_map(|name| environment.iter().filter(move |(it, _)| it == name));
        let passed = passed.map(|(name, value)| (name, value));
        let variables = set.chain(passed).filter(|(name, _)| is_secret_name(name));
        let headers = self.otlp.headers.iter();
        let words = headers.clone().flat_map(|(name, value)| {
            value.split_ascii_whitespace().map(move |word| (name.clone(), word.to_owned()))
        });
        let whole = variables.chain(headers).map(|(name, value)| (name.clone(), value.clone()));
        whole.chain(words).collect()
    }
}
