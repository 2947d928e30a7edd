mod publishing;
mod storm;
