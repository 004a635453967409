//! Who reaches the status page.

use super::*;

#[test]
fn the_status_page_is_reached_where_it_is_wanted() {
    for which in rented() {
        let opened = |more: &str, role: Role| {
            let text = format!(
                "name = \"demo\"\n{more}[provider]\n{}[[nodes]]\nname = \"m\"\nrole = \"master\"\n[[nodes]]\nname = \"w\"\nrole = \"worker\"\n",
                which.provider()
            );
            let stage = Stage::of(which, read(&text));
            stage.cloud().rules(role).iter().any(|rule| rule.ports.contains("10272"))
        };
        let page = "[status]\npage = true\n";
        assert!(opened(page, Role::Master) && !opened(page, Role::Worker) && !opened("", Role::Master), "{which:?}");
    }
}
