"""The look: warm paper, ink and one petrol accent; Lora for names, Source Sans for everything else.

Lora lies beside this and Source Sans comes with Gradio, so nothing is fetched. What the theme cannot say, and the
colours of our own HTML, are in the style sheets beside this.
"""

from __future__ import annotations

import base64
from pathlib import Path

import gradio as gr
from gradio.themes.utils.colors import Color

HERE = Path(__file__).parent

# Eleven shades each, from the lightest.
PETROL = Color(
    *("#eef6f5", "#d8ebe8", "#b3d9d4", "#84c4bc", "#5fb3a9", "#2b8a84"),
    *("#175e60", "#124b4d", "#0e3b3d", "#0a2b2d", "#071f21"),
)
STONE = Color(
    *("#fdfbf8", "#f5f0e8", "#e8e0d4", "#d3c9bb", "#a49b92", "#6f6872"),
    *("#57505f", "#3d3848", "#292531", "#1c1a23", "#131218"),
)


def head() -> str:
    """For the page's head: the style sheet, whose selectors Gradio would rewrite were it given as ``css``, the
    element that plays sounds, and what stands for pictures that no browser shows.
    """
    font = base64.b64encode((HERE / "fonts" / "Lora-SemiBold.woff2").read_bytes()).decode()
    face = f"@font-face{{font-family:Lora;font-weight:600;src:url(data:font/woff2;base64,{font})format('woff2')}}"
    sheets = "".join((HERE / name).read_text() for name in ("style.css", "ask.css", "sounds.css"))
    scripts = "".join((HERE / name).read_text() for name in ("player.js", "pictures.js"))
    return f"<style>{face}{sheets}</style><script>{scripts}</script>"


def theme() -> gr.themes.Base:
    """Light and dark in one; Gradio follows the system's choice."""
    return gr.themes.Base(
        primary_hue=PETROL,
        secondary_hue=PETROL,
        neutral_hue=STONE,
        radius_size=gr.themes.sizes.radius_md,
        text_size=gr.themes.sizes.text_md,
        font=[gr.themes.LocalFont("Source Sans Pro", weights=(400, 700)), "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Consolas", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="#efebe4",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="#aba4b4",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_800",
        border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_700",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_shadow_dark="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="#e5e0ea",
        block_title_text_weight="600",
        block_title_text_size="16px",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="#aba4b4",
        layout_gap="20px",
        form_gap_width="20px",
        panel_border_width="0px",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        input_border_color_focus="*primary_600",
        input_border_color_focus_dark="*primary_300",
        input_border_width="1px",
        input_radius="10px",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="#8d8697",
        slider_color="*primary_600",
        slider_color_dark="*primary_300",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_500",
        checkbox_border_color_selected="*primary_600",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
        checkbox_label_background_fill_selected="*primary_600",
        checkbox_label_background_fill_selected_dark="*primary_300",
        checkbox_label_text_color_selected="white",
        checkbox_label_text_color_selected_dark="*neutral_950",
        checkbox_label_border_color="*neutral_300",
        checkbox_label_border_color_dark="*neutral_700",
        button_large_radius="12px",
        button_small_radius="999px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_300",
        button_primary_background_fill_hover_dark="*primary_200",
        button_primary_text_color="white",
        button_primary_text_color_dark="*neutral_950",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="*neutral_900",
        button_secondary_background_fill_hover_dark="*neutral_800",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        button_secondary_text_color="*neutral_800",
        button_secondary_text_color_dark="#efebe4",
        button_cancel_background_fill="transparent",
        button_cancel_background_fill_dark="transparent",
        button_cancel_border_color="#b5443c",
        button_cancel_border_color_dark="#ee9a92",
        button_cancel_text_color="#a0342d",
        button_cancel_text_color_dark="#f3aba4",
        button_border_width="1px",
        button_transition="background-color 120ms ease",
    )
