//! Which tests a binary has: it is asked once, and again when it is another.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use orbit_tests::{Case, Context, Who};

use crate::told::{self, Told, package};

pub(crate) fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&Context) -> Result<()>| {
        Case::new(format!("listed::{name}"), run)
            .who(Who::RANGED)
            .needs_toolchain()
            .deadline(std::time::Duration::from_secs(600))
    };
    vec![
        case("what_is_the_same_is_asked_once", same),
        case("half_an_answer_is_not_remembered", half),
        case("what_is_built_anew_is_asked_again", anew),
        case("a_main_of_its_own_is_asked_each_time", own_main),
        case("what_is_not_told_is_not_left_out", not_told),
    ]
}

/// Before `main`: where it is told to, the binary says nothing when it is asked for its tests, and is then run as a whole; or
/// when it is asked which it ignores.
const MUTE: &str = r#"
    extern "C" fn before_main() {
        let has = |word: &str| std::env::args_os().any(|it| it == word);
        let is_mute = match std::env::var("MUTE").as_deref() {
            Ok("ignored") => has("--ignored"),
            Ok(_) => true,
            Err(_) => false,
        };
        if has("--list") && is_mute {
            std::process::exit(3);
        }
    }
    #[used]
    #[unsafe(link_section = ".init_array")]
    static BEFORE_MAIN: extern "C" fn() = before_main;
"#;

/// The tests of a run, in their order.
fn run(context: &Context, package: &Path, words: &[&str]) -> Result<Vec<String>> {
    let mut command = told::command(context, package)?;
    command.args(["--tests", "--test", "asked"]).args(words);
    let told = Told::of(&command.output()?)?;
    ensure!(told.code == Some(0), "{:?}: {}", told.code, told.stderr);
    let mut names = told.names("test-finished");
    names.sort();
    Ok(names)
}

const IS_MUTE: [&str; 2] = ["--env", "MUTE=1"];
const AS_A_WHOLE: [&str; 1] = ["package::asked "];

fn text(tests: &[&str]) -> String {
    let tests = tests.iter().map(|words| format!("#[test] {words} {{}}\n"));
    tests.fold(MUTE.to_owned(), |text, test| text + &test)
}

fn same(context: &Context) -> Result<()> {
    let text = text(&["fn one()", "#[ignore] fn two()"]);
    let package = package(context, &[("asked", &text)])?;
    let both = ["package::asked one", "package::asked two"];
    for isolation in ["binary", "test"] {
        let isolation = ["--isolate", isolation];
        let first = run(context, &package, &isolation)?;
        ensure!(first == both, "{first:?}");
        let again = run(context, &package, &[isolation, IS_MUTE].concat())?;
        ensure!(again == both, "it was asked again: {again:?}");
    }
    // Words that are the binary's own may choose among its tests.
    let asked = run(
        context,
        &package,
        &[&IS_MUTE[..], &["--", "--test"]].concat(),
    )?;
    ensure!(asked == AS_A_WHOLE, "it was not asked: {asked:?}");
    Ok(())
}

/// Which tests there are, and not which are ignored.
fn half(context: &Context) -> Result<()> {
    let text = text(&["fn one()", "#[ignore] fn two()"]);
    let package = package(context, &[("asked", &text)])?;
    run(context, &package, &["--env", "MUTE=ignored"])?;
    let told = run(context, &package, &["--", "--ignored"])?;
    ensure!(told.contains(&"package::asked two".to_owned()), "{told:?}");
    Ok(())
}

fn anew(context: &Context) -> Result<()> {
    let package = package(context, &[("asked", &text(&["fn one()"]))])?;
    let first = run(context, &package, &[])?;
    ensure!(first == ["package::asked one"], "{first:?}");
    fs::write(
        package.join("tests/asked.rs"),
        text(&["fn one()", "fn three()"]),
    )?;
    let asked = run(context, &package, &IS_MUTE)?;
    ensure!(asked == AS_A_WHOLE, "it was not asked: {asked:?}");
    let all = run(context, &package, &[])?;
    ensure!(
        all == ["package::asked one", "package::asked three"],
        "{all:?}"
    );
    Ok(())
}

/// What it says may come from a file, or from anywhere.
fn own_main(context: &Context) -> Result<()> {
    let text = r#"
        fn main() {
            let is_asked = |word: &str| std::env::args().any(|it| it == word);
            if is_asked("--list") && !is_asked("--ignored") {
                println!("{}: test", std::env::var("NAME").unwrap());
            }
        }
    "#;
    let package = package(context, &[("asked", text)])?;
    let manifest = package.join("Cargo.toml");
    let own = "\n[[test]]\nname = \"asked\"\nharness = false\n";
    fs::write(&manifest, fs::read_to_string(&manifest)? + own)?;
    for name in ["spring", "summer"] {
        let words = ["--isolate", "test", "--env", &format!("NAME={name}")];
        let told = run(context, &package, &words)?;
        ensure!(told == [format!("package::asked {name}")], "{told:?}");
    }
    Ok(())
}

/// Of tests that are chosen by name, and whose names nobody knows, none is taken for one that was not asked for.
fn not_told(context: &Context) -> Result<()> {
    let package = package(context, &[("asked", &text(&["fn one()"]))])?;
    let why = "its tests cannot be listed: it failed with exit code 3";
    for (words, is_chosen) in [
        (&["one"][..], true),
        (&["-E", "test(one)", "--retries", "1"], true),
        (&["--", "--ignored"], true),
        (&["--list"], true),
        (&["-E", "not binary(asked)"], false),
    ] {
        let mut command = told::command(context, &package)?;
        command.args(["--tests", "--test", "asked"]).args(IS_MUTE);
        let told = command.args(words).output()?;
        let said = [&told.stdout[..], &told.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let code = if is_chosen { 101 } else { 0 };
        ensure!(
            told.status.code() == Some(code) && said.contains(why) == is_chosen,
            "{words:?}: {:?}: {said}",
            told.status
        );
    }
    Ok(())
}
