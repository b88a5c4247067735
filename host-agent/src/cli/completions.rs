//! `hospes completions`

use std::io::{self, Write};

use clap::{Parser, ValueEnum};
use clap_complete::env::Shells;

use crate::cli::{Verb, VmPlace};
use crate::command_error::CommandError;

/// Print what makes a shell complete hospes' words, VM names and guest paths among them
///
/// For bash: source <(hospes completions bash). For fish: hospes completions fish | source.
#[derive(Debug, Parser)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Elvish,
    Fish,
    Zsh,
}

/// What bash needs besides: it takes `VM:PATH` apart at the colon, and wants the part behind it alone. A guest's names
/// are quoted as bash would quote its own.
const BASH: &str = r#"
_hospes() {
    local rest=$COMP_LINE joined=() at=-1 index=0 i gap word
    for ((i = 0; i < ${#COMP_WORDS[@]}; i++)); do
        word=${COMP_WORDS[i]}
        gap=${rest%%[![:space:]]*}
        rest=${rest#"$gap"}
        rest=${rest#"$word"}
        if ((at >= 0)) && [[ -z $gap && ($word == :* || ${joined[at]} == *:) ]]; then
            joined[at]+=$word
        else
            joined[++at]=$word
        fi
        ((i != COMP_CWORD)) || index=$at
    done
    local COMP_WORDS=("${joined[@]}") COMP_CWORD=$index
    word=${joined[index]//\\/}
    _clap_complete_hospes "$1" "$word" "$3"
    local head=
    [[ $word != *:* || $COMP_WORDBREAKS != *:* ]] || head=${word%"${word##*:}"}
    for i in "${!COMPREPLY[@]}"; do
        word=${COMPREPLY[i]#"$head"}
        # What clap puts behind a whole word stays a space.
        gap=${word##*[![:space:]]}
        printf -v word %q "${word%"$gap"}"
        COMPREPLY[i]=$word$gap
    done
}
complete -o nospace -o bashdefault -F _hospes hospes
"#;

impl Verb for Completions {
    const NAME: &'static str = "completions";
    const VM: VmPlace = VmPlace::None;

    fn run(self) -> Result<u8, CommandError> {
        let name = match self.shell {
            Shell::Bash => "bash",
            Shell::Elvish => "elvish",
            Shell::Fish => "fish",
            Shell::Zsh => "zsh",
        };
        let shells = Shells::builtins();
        let completer = shells.completer(name).ok_or_else(|| CommandError::local("No such shell"))?;
        let mut script = Vec::new();
        completer
            .write_registration("COMPLETE", "hospes", "hospes", "hospes", &mut script)
            .and_then(|()| {
                if name == "bash" {
                    script.extend_from_slice(BASH.as_bytes());
                }
                io::stdout().write_all(&script)
            })
            .map_err(|error| CommandError::io("Cannot write the completions", &error))?;
        Ok(0)
    }
}
