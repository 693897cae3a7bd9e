"""The dashboard: which pages there are. `python -m dashboards` starts it; one page is one file."""

import streamlit as st

from dashboards import forecasts

# Drawn here: Streamlit fetches the named icons of a browser's tab from the internet.
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none" stroke="#0072b2" stroke-width="2.5">'
    '<path d="M2 17l6-7 5 5 9-10"/></svg>'
)
COMPACT = """<style>
.stMainBlockContainer { padding: 2.6rem 3rem 2rem; }
[data-testid="stSidebarHeader"] { height: 2.2rem; margin-bottom: 0; padding-top: 0.6rem; }
[data-testid="stMetric"] { padding: 0; }
[data-testid="stMetric"] > div { padding: 0.5rem 0.9rem 0.35rem; }
[data-testid="stMetricValue"] { font-size: 1.45rem; }
</style>"""

st.set_page_config(page_title="Mnemosyne", page_icon=ICON, layout="wide")
st.html(COMPACT)
with st.sidebar:
    st.markdown("### :material/timeline: Mnemosyne")
pages = [
    st.Page(forecasts.main, title="Forecasts and live stream", icon=":material/monitoring:", url_path="forecasts"),
]
st.navigation(pages).run()
