"""The tab Pictures: a comparison's rows side by side, and what can be taken away of them."""

import gradio as gr

from ..parts import report_of, view


class Tab:
    def __init__(self, page):
        self.page = page
        with gr.Tab("Pictures", id="pictures"):
            self.board = view("board", None)
        self.shown, self.begun = [self.board], {}

    def wire(self, options):
        return []

    def left(self, job):
        """What a comparison leaves: finished, stopped or failed."""
        path, fault = job.pack()
        status = job.status()
        status["sentence"] = f"{status['sentence']} {fault}".strip()
        return self.shows(job) | {self.page.status: status, self.page.download: gr.DownloadButton(value=path, interactive=path is not None)}

    def shows(self, job):
        """A finished comparison on the page, and what more can be asked about it."""
        seen = gr.Button(interactive=any(row.image is not None for row in job.rows.values()))
        return {self.board: job.board(), self.page.report: report_of(job)} | {button: seen for button in self.page.further}
