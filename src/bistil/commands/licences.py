"""`bistil licences`: what is installed here, and under which licences."""

import json

import typer

from bistil.runtime.licences import Reach, installed_licences

MEANING = {
    Reach.PERMISSIVE: "permissive",
    Reach.FILE: "its own files only",
    Reach.UNKNOWN: "not known",
    Reach.COPYLEFT: "copyleft",
}


def register(app: typer.Typer) -> None:
    @app.command()
    def licences(
        as_json: bool = typer.Option(False, "--json", help="One JSON object a line for each package."),
        development: bool = typer.Option(False, "--dev", help="Also what only those need who change the package."),
    ) -> None:
        """List the packages that bistil needs and its extras bring, as installed here, with their licences.

        A licence is what a package says of itself. "Its own files only" are MPL and LGPL: changes to that package's
        files stay under its licence, and what uses it is free.

        Example: bistil licences
        """
        found = installed_licences(development=development)
        if as_json:
            for one in found:
                fields = {"name": one.name, "version": one.version, "licence": one.licence}
                print(json.dumps({**fields, "reach": MEANING[one.reach], "wanted_by": list(one.wanted_by)}))
            return
        head = ("package", "reach", "licence", "wanted by")
        rows = [
            head,
            *(
                (f"{one.name} {one.version}", MEANING[one.reach], one.licence, ", ".join(one.wanted_by))
                for one in found
            ),
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
